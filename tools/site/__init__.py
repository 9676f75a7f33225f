"""What the site needs beside mkdocs and its plugins."""
