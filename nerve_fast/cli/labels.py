"""The flags for labels, and for how probable they must be."""

from nerve_fast.errors import InputError


def add_labels(command) -> None:
    """Add the flags to a command."""
    command.add_argument(
        "--labels",
        help='classes, ";" between them, "," between synonyms: "cat; dog, puppy; grass"',
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
    """The labels of the flag; none where it is not given."""
    return [] if text is None else [label.strip() for label in text.split(";")]


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
