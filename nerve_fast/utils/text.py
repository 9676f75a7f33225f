"""Strings from files and arguments, made safe for a terminal or a page of Markdown."""

import re
import unicodedata

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of control characters, those that turn the direction of text among them."""


def plain(text: str, kept: str = "") -> str:
    r"""A text with control characters as escapes, such as ``\x1b``.

    Args:
        text: of any origin.
        kept: characters that stay although they control something, such as ``"\n"``.
    """
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _HIDDEN and character not in kept
        else character
        for character in text
    )


def shortened(text: str, most: int) -> str:
    """The start of a text that takes at most ``most`` bytes in a file's name."""
    # Characters that stand for bytes of a name that is not UTF-8 are left out.
    return text.encode("utf-8", "ignore")[:most].decode("utf-8", "ignore")


def markdown(text: str) -> str:
    """A text that Markdown shows as it is, on one line, in a table too."""
    escaped = re.sub(r"([\\`*\[\]<>|~]|(?<!\w)_|_(?!\w)|^#)", r"\\\1", plain(str(text)))
    return escaped.replace("&", "&amp;")


def code(text: str) -> str:
    """A text as a code span of Markdown."""
    text = plain(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"
