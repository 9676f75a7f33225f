"""A table of areas and mean confidences, a line for each label of each image, one file a run."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from nerve_fast.imaging.exports.labelled import Labelled
from nerve_fast.utils.files import written_whole
from nerve_fast.utils.text import plain

FILE = "areas.csv"
COLUMNS = ("image", "label", "pixels", "share", "confidence")
MARK = ",".join(COLUMNS).encode()
"""What the files that are written here start with."""


def write(folder: Path, labels: Sequence[str], images: Iterable[Labelled]) -> None:
    """Write ``areas.csv``, whole or not at all.

    The label of pixels that have none is empty, and so is its confidence.
    """
    with (
        written_whole(folder / FILE) as path,
        path.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for one in images:
            for number, pixels in one.areas().items():
                label = "" if number < 0 else one.labels[number]
                confidence = None if number < 0 else one.confidence(number)
                shown = "" if confidence is None else f"{confidence:.6f}"
                share = f"{pixels / one.label_map.size:.6f}"
                table.writerow((plain(one.image), label, pixels, share, shown))
