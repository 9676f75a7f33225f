"""Hooks of mkdocs: formulas become MathML, and links out of ``docs/`` lead to the repository.

MathML needs neither a script nor a network where the page is read.
"""

import html
import re

from latex2mathml.converter import convert

# What pymdownx.arithmatex leaves for scripts to find.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</\1>', re.DOTALL)
FOLDERS = "bench|examples|kernels|nerve_fast|tests|tools"
OUTSIDE = re.compile(rf"\]\((?:\.\./)+(?P<path>(?:{FOLDERS})\b[^)]*|[A-Z_]+(?:\.md|\.cff)?)\)")


def on_page_markdown(markdown, *, page, config, files):
    """Files of the repository that are no pages are linked where they are kept."""
    return OUTSIDE.sub(rf"]({config.repo_url}/blob/main/\g<path>)", markdown)


def on_page_content(content, *, page, config, files):
    """Formulas, in text and in docstrings alike."""
    return FORMULA.sub(_mathml, content)


def _mathml(match):
    display = "block" if match[1] == "div" else "inline"
    return convert(html.unescape(match["tex"]).strip(), display=display)
