"""The flags for labels, and for how probable they must be."""

import os

from nerve_fast import datasets
from nerve_fast.datasets.label_files import read_labels
from nerve_fast.errors import InputError


def add_labels(command) -> None:
    """Add the flags to a command."""
    command.add_argument(
        "--labels",
        metavar="TEXT|NAME|FILE",
        help='classes, ";" between them, "," between synonyms: "cat; dog, puppy; grass"; or those '
        f"of a data set, {', '.join(datasets.NAMES)}; or a file, one class a line",
    )
    command.add_argument(
        "--top",
        type=int,
        metavar="N",
        help="of many labels take for each image the N that are likeliest on most of it",
    )


def add_threshold(group) -> None:
    """Add the flags for thresholds to a command or a group of flags."""
    group.add_argument(
        "--threshold",
        metavar="P",
        help='the least probability of a pixel\'s label: 0.3, or by label "cat: 0.4; dog: 0.25"',
    )
    group.add_argument(
        "--background", metavar="NAME", help="label of pixels under the threshold (default: none)"
    )


def labels_of(text: str | None) -> list[str]:
    """The labels of the flag: of a data set, of a file, or as they stand; none without it.

    A text without ";" is a file where there is one of that name, or where it looks like a path.

    Raises:
        InputError: a file is not there, or holds no labels.
    """
    if text is None:
        return []
    if text in datasets.NAMES:
        return list(datasets.labels_of(text))
    if ";" not in text and _is_path(text):
        return list(read_labels(text))
    return [label.strip() for label in text.split(";")]


def _is_path(text: str) -> bool:
    try:
        is_file, is_folder = os.path.isfile(text), os.path.isdir(text)
    except ValueError:  # With a null byte.
        return False
    # A single label may have the name of a folder, such as the one of its images.
    return (
        is_file or text.lower().endswith(".txt") or (is_folder and os.path.basename(text) != text)
    )


def threshold_of(text: str | None) -> float | dict[str, float] | None:
    """``"0.3"`` as a number, ``"cat: 0.4; dog: 0.25"`` as numbers by label.

    Raises:
        InputError: the text has another form, or a label stands twice.
    """
    if text is None:
        return None
    if ":" not in text:
        return _number(text, text)
    found: dict[str, float] = {}
    for part in filter(str.strip, text.split(";")):
        label, colon, value = part.rpartition(":")
        if not (colon and label.strip()):
            raise _wrong(text)
        if label.strip() in found:
            raise InputError(f"--threshold names {label.strip()!r} twice")
        found[label.strip()] = _number(value, text)
    if not found:
        raise _wrong(text)
    return found


def _number(value: str, text: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise _wrong(text) from None


def _wrong(text: str) -> InputError:
    return InputError(
        f'--threshold is {text!r}; expected a number from 0 to 1, or "label: number" with ";" '
        "between labels"
    )
