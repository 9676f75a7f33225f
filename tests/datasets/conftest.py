"""Small data sets in the true layouts: three images each, of two sizes, in no sorted order."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZES = {0: (6, 4), 1: (4, 6), 2: (6, 4)}
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
    """Of the three samples, in no sorted order."""
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


@pytest.fixture
def make():
    """``make(name, root)``: a data set on disk; the masks as they stand in the files, by name."""

    def build(name, root):
        image_place, mask_place = PLACES[name]
        masks = {}
        for number, sample in enumerate(names_of(name)):
            width, height = SIZES[number]
            write(place(root, image_place, sample), Image.new("RGB", (width, height), "teal"))
            labels = (np.arange(height * width, dtype=np.uint8) % 19).reshape(height, width)
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

    return build


@pytest.fixture
def mask_of():
    """``mask_of(name, root, number)``: the path of a sample's mask."""
    return lambda name, root, number: place(root, PLACES[name][1], names_of(name)[number])


@pytest.fixture
def image_of():
    """``image_of(name, root, number)``: the path of a sample's image."""
    return lambda name, root, number: place(root, PLACES[name][0], names_of(name)[number])
