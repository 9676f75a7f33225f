"""Labels and the synonyms inside them."""

import re
import unicodedata
from collections.abc import Sequence

from nerve_fast.errors import InputError, quoted


def parse_labels(labels: Sequence[str]) -> list[list[str]]:
    r"""Split each label into its words: ``"cat, kitten"`` is one class with two synonyms.

    ``\,`` is a comma inside a word.

    Args:
        labels: one string a class.

    Returns:
        A non-empty list of words for each label, white space and Unicode normalised.

    Raises:
        InputError: there is no label, one is empty or not text, or a word stands twice.
        TypeError: ``labels`` is not a list or tuple of strings.
    """
    if not isinstance(labels, (list, tuple)) or not all(isinstance(x, str) for x in labels):
        raise TypeError(f"labels is {quoted(labels)}; expected a list of strings, one a class")
    if not labels:
        raise InputError("labels is empty; expected at least one class name")
    for number, label in enumerate(labels, start=1):
        check_text(f"label {number}", label)
    classes = [_words(label) for label in labels]
    owner: dict[str, int] = {}
    for number, words in enumerate(classes, start=1):
        for word in words:
            if not word:
                raise InputError(
                    f"label {number} is {labels[number - 1]!r}; it holds an empty name"
                )
            if word.casefold() in owner:
                where = sorted({owner[word.casefold()], number})
                raise InputError(
                    f"the name {word!r} stands twice, in label {' and '.join(map(str, where))}; "
                    "each name may belong to one class only"
                )
            owner[word.casefold()] = number
    return classes


def check_text(called: str, label: str) -> None:
    """Raise an :class:`InputError` where a label cannot stand on a line of text."""
    if any(unicodedata.category(c) in ("Cc", "Cs") and c != "\t" for c in label):
        raise InputError(
            f"{called} is {label!r}; it holds a line break or another character that is not text"
        )


def number_of(name: str, labels: Sequence[str]) -> int | None:
    """The place of a label among others, by all of its text or by one of its words; or ``None``."""
    if name in labels:
        return list(labels).index(name)
    asked = _normalised(name).casefold()
    for number, label in enumerate(labels):
        if asked in (word.casefold() for word in _words(label)):
            return number
    return None


def _words(label: str) -> list[str]:
    """The synonyms inside a label, normalised."""
    words = re.split(r"(?<!\\),", label)
    return [_normalised(word.replace("\\,", ",")) for word in words]


def _normalised(word: str) -> str:
    """Normalize a word: composed letters, single spaces, no invisible characters."""
    visible = "".join(c for c in word if unicodedata.category(c) != "Cf")
    return " ".join(unicodedata.normalize("NFC", visible).split())
