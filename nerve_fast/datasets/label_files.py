"""Labels from elsewhere: the classes of a published data set by its name, or a file of labels."""

import os
import re
from pathlib import Path

from nerve_fast.datasets.vocabulary import NAMES, classes_of
from nerve_fast.errors import InputError, quoted
from nerve_fast.utils.files import shown
from nerve_fast.utils.labels import parse_labels

LARGEST_FILE = 1 << 24
"""Bytes of a file of labels; a larger one is something else."""


def labels_of(source: str | os.PathLike) -> tuple[str, ...]:
    """The labels of a published data set, or of a file.

    Args:
        source: one of :data:`~nerve_fast.datasets.NAMES`, whose plain words are given, or the path
            of a file of :func:`read_labels`.

    Raises:
        InputError: there is no such data set or file, or the file holds no labels.
    """
    if source in NAMES:
        return classes_of(str(source))
    if not os.path.lexists(source):
        raise InputError(
            f"labels are {quoted(os.fspath(source))}; expected a file, or one of {', '.join(NAMES)}"
        )
    return read_labels(source)


def read_labels(path: str | os.PathLike) -> tuple[str, ...]:
    r"""Read a file of labels: UTF-8 text, one label a line.

    Commas separate synonyms, ``\,`` is a comma inside a word. What follows ``#`` at the start of a
    line or after white space is a comment. Empty lines are left out.

    Raises:
        InputError: the file cannot be read, is no such text, holds no label, or one that
            :func:`~nerve_fast.utils.labels.parse_labels` refuses.
    """
    path, name = Path(path), shown(path)
    try:
        if path.is_dir():
            raise InputError(f"{name}: is a folder; expected a file of labels, one a line")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot be read: {reason}") from None
    if len(content) > LARGEST_FILE:
        raise InputError(
            f"{name}: is larger than {LARGEST_FILE >> 20} MiB; expected a file of labels, one a "
            "line"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: is not UTF-8 text at byte {error.start}; save the labels as UTF-8"
        ) from None
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in re.split(r"\r\n|\r|\n", text))
    labels = tuple(filter(None, lines))
    if not labels:
        raise InputError(f"{name}: holds no label; expected one a line")
    try:
        parse_labels(labels)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return labels
