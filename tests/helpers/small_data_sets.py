"""Small data sets in the layouts that people have on disk; of several tests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((6, 4), (4, 6), (6, 4))
"""Width and height of each image."""

PLACES = {
    "voc21": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
    "voc20": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
    "pc60": ("JPEGImages/{}.jpg", "SegmentationClassContext/{}.png"),
    "pc59": ("JPEGImages/{}.jpg", "SegmentationClassContext/{}.png"),
    "coco-object": ("images/val2017/{}.jpg", "annotations/val2017/{}_instanceTrainIds.png"),
    "coco-stuff": ("images/val2017/{}.jpg", "annotations/val2017/{}_labelTrainIds.png"),
    "ade20k": ("images/validation/{}.jpg", "annotations/validation/{}.png"),
    "cityscapes": (
        "leftImg8bit/val/{city}/{}_leftImg8bit.png",
        "gtFine/val/{city}/{}_gtFine_labelTrainIds.png",
    ),
    "folder": ("images/{}.jpg", "masks/{}.png"),
}
LISTS = {
    "voc21": "ImageSets/Segmentation/val.txt",
    "voc20": "ImageSets/Segmentation/val.txt",
    "pc60": "ImageSets/SegmentationContext/val.txt",
    "pc59": "ImageSets/SegmentationContext/val.txt",
}
NAMED = {
    "voc": ("2009_000003", "2007_000033", "2008_000042"),
    "coco": ("000000000785", "000000000139", "000000000285"),
    "ade20k": ("ADE_val_00000003", "ADE_val_00000001", "ADE_val_00000002"),
    "cityscapes": (
        "munster_000001_000019",
        "frankfurt_000000_000294",
        "lindau_000002_000019",
    ),
    "folder": ("c", "a", "b"),
}


def names_of(name):
    """Of three samples, in no sorted order."""
    return NAMED.get(name) or NAMED["voc" if name in LISTS else name.split("-")[0]]


def place(root, pattern, name):
    return root / pattern.format(name, city=name.split("_")[0])


def write(path: Path, image: Image.Image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def palette_image(labels):
    image = Image.fromarray(labels).convert("P")
    # Colours that no conversion takes back to the labels.
    image.putpalette(np.random.default_rng(0).integers(0, 255, 768).astype(np.uint8).tobytes())
    return image


def build(name: str, root: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> dict[str, np.ndarray]:
    """Write a data set of up to three images, in no sorted order.

    Args:
        name: one of :data:`PLACES`.
        root: where it is written.
        sizes: ``(width, height)`` of each image.

    Returns:
        The masks as they stand in the files, by name: classes 0 to 18, one pixel without a class.
    """
    image_place, mask_place = PLACES[name]
    draw = np.random.default_rng(5)
    masks = {}
    for number, (sample, (width, height)) in enumerate(zip(names_of(name), sizes, strict=False)):
        colours = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        write(place(root, image_place, sample), Image.fromarray(colours))
        labels = (np.arange(height * width) % 19).astype(np.uint8).reshape(height, width)
        labels[0, 0] = 255
        labels[-1, -1] = number
        mask = palette_image(labels) if name in LISTS else Image.fromarray(labels)
        write(place(root, mask_place, sample), mask)
        masks[sample] = labels
    if name in LISTS:
        path = root / LISTS[name]
        path.parent.mkdir(parents=True)
        path.write_text("".join(f"{sample}\n" for sample in masks))
    if name == "folder":
        classes = [f"class {number}" for number in range(18)]
        (root / "names.txt").write_text("\n".join(["background", *classes]) + "\n")
    return masks


def mask_path(name: str, root: Path, number: int) -> Path:
    """The place of a sample's mask."""
    return place(root, PLACES[name][1], names_of(name)[number])


def image_path(name: str, root: Path, number: int) -> Path:
    """The place of a sample's image."""
    return place(root, PLACES[name][0], names_of(name)[number])
