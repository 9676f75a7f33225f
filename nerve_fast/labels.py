"""Labels and the synonyms inside them."""

from collections.abc import Sequence

from nerve_fast.errors import InputError


def parse_labels(labels: Sequence[str]) -> list[list[str]]:
    """The words of each label: ``"cat, kitten"`` is one class with two synonyms.

    Args:
        labels: one string a class.

    Returns:
        A non-empty list of words for each label.

    Raises:
        InputError: there is no label, one is empty, or a word stands twice.
        TypeError: ``labels`` is not a sequence of strings.
    """
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise TypeError(f"labels is {labels!r}; expected a list of strings, one a class")
    if not labels:
        raise InputError("labels is empty; expected at least one class name")
    classes = [[word.strip() for word in label.split(",")] for label in labels]
    owner = {}
    for number, words in enumerate(classes, start=1):
        for word in words:
            if not word:
                raise InputError(
                    f"label {number} is {labels[number - 1]!r}; it holds an empty name"
                )
            if word.lower() in owner:
                where = sorted({owner[word.lower()], number})
                raise InputError(
                    f"the name {word!r} stands twice, in label {' and '.join(map(str, where))}; "
                    "each name may belong to one class only"
                )
            owner[word.lower()] = number
    return classes
