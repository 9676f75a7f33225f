"""Pascal VOC's layout, which CVAT reads as "Segmentation mask": palette masks and a label map.

``voc/SegmentationClass/NAME.png`` holds 0 for the background, from 1 on the other labels, and 255,
VOC's "void", where there is no label. ``voc/labelmap.txt`` names the colours, and
``voc/ImageSets/Segmentation/default.txt`` the images.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nerve_fast.errors import InputError, quoted
from nerve_fast.imaging.exports.labelled import Labelled, make_folder
from nerve_fast.imaging.visualize import palette, save_picture
from nerve_fast.utils.files import written_whole
from nerve_fast.utils.labels import number_of
from nerve_fast.utils.text import plain

LABEL_MAP = "voc/labelmap.txt"
IMAGES = "voc/ImageSets/Segmentation/default.txt"
MARK = b"# written by nerve-fast"
"""What label maps that are written here hold at their start."""

VOID = (224, 224, 192)
MOST_LABELS = 254


def check(labels: Sequence[str]) -> None:
    """Refuse labels that the layout has no place for.

    Raises:
        InputError: there are too many, or one would not be read back from ``labelmap.txt``.
    """
    if len(labels) > MOST_LABELS:
        raise InputError(
            f"the export voc has values for {MOST_LABELS} labels, and there are {len(labels)}; "
            "take another format, as coco"
        )
    for label in labels:
        if ":" in label or label.startswith("#"):
            raise InputError(
                f"the label {quoted(label)} cannot stand in VOC's labelmap.txt, where colons "
                "separate fields and # starts a comment; leave out the export voc, or rename it"
            )


def mask_of(stem: str) -> str:
    """The path of an image's mask below the output folder."""
    return f"voc/SegmentationClass/{stem}.png"


def values(labels: Sequence[str]) -> list[int]:
    """The value of each label in a mask: 0 for the one named background, then 1, 2, …"""
    background = number_of("background", labels)
    others = iter(range(1, len(labels) + 1))
    return [0 if number == background else next(others) for number in range(len(labels))]


def write_image(one: Labelled, folder: Path, tolerance: float) -> list[Path]:
    """Write an image's mask, whole or not at all; returns its path."""
    path = folder / mask_of(one.stem)
    make_folder(path.parent)
    # The last one is that of −1.
    numbers = np.array([*values(one.labels), 255], np.uint8)
    mask = Image.fromarray(numbers[one.label_map]).convert("P")
    colours = np.zeros((256, 3), np.uint8)
    colours[values(one.labels)] = _colours(one.labels)
    colours[255] = VOID
    mask.putpalette(colours.tobytes())
    save_picture(mask, path)
    return [path]


def write(folder: Path, labels: Sequence[str], images: Iterable[Labelled]) -> None:
    """Write ``labelmap.txt``, and then the list of images."""
    lines = ["# label:color_rgb:parts:actions", MARK.decode()]
    entries = {0: ("background", [0, 0, 0])}
    entries |= dict(
        zip(values(labels), zip(labels, _colours(labels).tolist(), strict=True), strict=True)
    )
    # In the order of the values, by which some readers number the labels.
    for _, (label, colour) in sorted(entries.items()):
        lines.append(f"{label}:{','.join(map(str, colour))}::")
    names = "".join(f"{plain(one.stem)}\n" for one in images)
    for name, text in ((LABEL_MAP, "\n".join(lines) + "\n"), (IMAGES, names)):
        make_folder((folder / name).parent)
        with written_whole(folder / name) as file:
            file.write_text(text, encoding="utf-8")


def _colours(labels: Sequence[str]) -> np.ndarray:
    """``(K, 3)`` uint8: the background is black, as VOC's; the others as in other results."""
    colours = palette(len(labels))
    background = number_of("background", labels)
    if background is not None:
        colours[background] = 0
    return colours
