"""What is measured: one file an operation, each with its rivals."""
