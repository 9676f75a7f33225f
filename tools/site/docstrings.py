"""An extension of griffe: docstrings as Markdown.

Docstrings are written for ``help()``, with Sphinx's roles and its ``math`` directive; mkdocstrings
takes Markdown.
"""

import re
import textwrap

import griffe

DIRECTIVE = re.compile(r"^\.\. math::(?P<tex>[^\n]*(?:\n(?:[ \t]+[^\n]*)?)*)", re.MULTILINE)
JOINT = re.compile(
    r"^(?P<indent> {4})(?P<first>\w+), (?P<others>\w+(?:, \w+)*): (?P<text>.*(?:\n {5,}.*)*)",
    re.MULTILINE,
)
ROLE = re.compile(r":(?:func|class|meth|attr|mod|data):`~?([\w.]+)`")


class MarkdownDocstrings(griffe.Extension):
    """Rewrites every docstring as it is loaded."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Roles become code, the directive a formula, arguments described together stand alone."""
    text = DIRECTIVE.sub(_formula, text)
    text = JOINT.sub(_apart, text)
    text = ROLE.sub(r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def _formula(match: re.Match) -> str:
    tex = " ".join(textwrap.dedent(match["tex"]).split())
    return f"$$\n{tex}\n$$\n\n"


def _apart(match: re.Match) -> str:
    first, indent = match["first"], match["indent"]
    lines = [f"{indent}{first}: {match['text']}"]
    lines += [f"{indent}{name}: As `{first}`." for name in match["others"].split(", ")]
    return "\n".join(lines)
