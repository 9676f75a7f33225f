"""The flags for clicks, boxes and scribbles, which several commands may take."""

import json
import re
from pathlib import Path
from typing import Any

from nerve_fast.errors import InputError

_NUMBER = r"-?\d+(?:\.\d+)?"


def add_seeds(command) -> None:
    """Add the flags to a command."""
    seeds = command.add_argument_group("clicks in place of words, or beside them")
    seeds.add_argument(
        "--points",
        metavar="TEXT",
        help='clicks in pixels, x,y, by label: "cup: 300,180; table: 60,60 560,60"',
    )
    seeds.add_argument(
        "--boxes",
        metavar="TEXT",
        help='boxes in pixels, left,top,right,bottom, by label: "cup: 10,10,90,80"',
    )
    seeds.add_argument(
        "--points-file",
        type=Path,
        metavar="FILE",
        help='JSON for many images: {"photo.jpg": {"cup": [[300, 180]], "table": [[60, 60]]}}',
    )
    seeds.add_argument(
        "--scribbles",
        type=Path,
        metavar="MASK",
        help="a greyscale or palette image of the image's size: 0 where nothing is said, else "
        "the number of a label, from 1",
    )
    seeds.add_argument(
        "--scribble-labels",
        metavar="TEXT",
        help='names of the numbers in the mask: "cup; table" (default: the numbers)',
    )


def places(flag: str, text: str | None, numbers: int) -> dict[str, list[tuple[Any, ...]]] | None:
    """``"cup: 300,180; table: 60,60 560,60"`` as places by label.

    Args:
        flag: for messages.
        text: what was given.
        numbers: of one place: 2 of a point, 4 of a box.

    Raises:
        InputError: the text has another form, or a label stands twice.
    """
    if text is None:
        return None
    form = ",".join(["x", "y"] if numbers == 2 else ["left", "top", "right", "bottom"])
    found: dict[str, list[tuple[Any, ...]]] = {}
    for part in filter(str.strip, text.split(";")):
        label, colon, rest = part.rpartition(":")
        label = label.strip()
        each = rest.replace(", ", ",").split()
        place = re.compile(",".join([_NUMBER] * numbers))
        if not (colon and label and each and all(map(place.fullmatch, each))):
            raise InputError(
                f'{flag} holds {part.strip()!r}; expected "label: {form}", more places of the '
                'label after spaces, and ";" between labels'
            )
        if label in found:
            raise InputError(f"{flag} names {label!r} twice; put all of its places together")
        found[label] = [tuple(map(float, one.split(","))) for one in each]
    if not found:
        raise InputError(f'{flag} is empty; expected "label: {form}"')
    return found


def points_by_image(path: Path | None) -> dict[str, dict] | None:
    """The points file.

    Raises:
        InputError: it cannot be read, or is of another form.
    """
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(f"--points-file {path}: cannot be read as JSON: {reason}") from None
    if not isinstance(content, dict) or not all(isinstance(one, dict) for one in content.values()):
        raise InputError(
            f"--points-file {path}: expected names of images, each with its labels and their "
            'points: {"photo.jpg": {"cup": [[300, 180]]}}'
        )
    return content
