"""COCO's instance annotations: a JSON file read, checked, and drawn as label maps."""

import collections
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nerve_fast.datasets.vocabulary import classes_of
from nerve_fast.errors import InputError
from nerve_fast.utils.lines import read_json

LARGEST_SIDE = 65_535
"""The longest side of an image, in pixels; a longer one is an error in the file."""

LARGEST_AREA = 178_956_970
"""The largest image, in pixels: Pillow refuses larger ones as decompression bombs."""


def drawings(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Return a function for each image, by its stem, that draws its ``(H, W)`` uint8 label map.

    Drawing raises an :class:`InputError` where what the file says of that image is not usable.

    Raises:
        InputError: the file is missing or not COCO's instance annotations, or pycocotools is not
            installed.
    """
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError:
        raise InputError(
            'pycocotools is not installed; get it: pip install "nerve-fast[data]"'
        ) from None
    if not path.exists():
        raise InputError(f"{path}: no such file; it is in COCO's annotations_trainval2017.zip")
    try:
        document = read_json(path)
    except InputError as error:
        raise InputError(f"{path}: not COCO's instance annotations ({error})") from error
    try:
        categories = {entry["id"]: entry["name"] for entry in _entries(document, "categories")}
        images = {entry["id"]: entry for entry in _entries(document, "images")}
        annotations: dict[Any, list[dict]] = {}
        for entry in _entries(document, "annotations"):
            annotations.setdefault(entry["image_id"], []).append(entry)
        things = [categories[number] for number in sorted(categories)]
        names = [_stem(image) for image in images.values()]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not COCO's instance annotations ({error!r})") from None
    if things != list(classes_of("coco-object")[1:]):
        raise InputError(f"{path}: has {len(things)} categories; expected COCO's 80, and no other")
    if len(set(names)) < len(names):
        (twice, _), *_ = collections.Counter(names).most_common(1)
        raise InputError(f"{path}: two images are named {twice}")
    labels = {number: label for label, number in enumerate(sorted(categories), start=1)}
    return {
        name: functools.partial(_drawn, path, image, annotations.get(image["id"], []), labels)
        for name, image in zip(names, images.values(), strict=True)
    }


def _entries(document: Any, name: str) -> list[dict]:
    """Return a list of the document, whose members must be objects."""
    entries = document[name]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TypeError(f"{name} is no list of objects")
    return entries


def _stem(image: dict) -> str:
    stem = Path(image["file_name"]).stem
    if not stem or not stem.isprintable():
        raise ValueError(f"file_name is {image['file_name']!r}")
    return stem


def _drawn(
    path: Path, image: dict, annotations: list[dict], labels: Mapping[int, int]
) -> np.ndarray:
    called = f"{path}: image {image['file_name']!r}"
    try:
        height, width = (_whole(image[side], 1, LARGEST_SIDE) for side in ("height", "width"))
        if height * width > LARGEST_AREA:
            raise ValueError(f"it has {width} × {height} pixels")
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{called}: its size is not usable ({error})") from None
    drawn = np.zeros((height, width), np.uint8)
    for annotation in reversed(annotations):
        try:
            label = labels[annotation["category_id"]]
            mask = _mask(annotation["segmentation"], height, width)
        except (ValueError, TypeError, LookupError) as error:
            number = annotation.get("id")
            raise InputError(f"{called}: annotation {number!r} is not usable ({error})") from None
        drawn[mask > 0] = label
    return drawn


def _mask(segmentation: object, height: int, width: int) -> np.ndarray:
    """Draw polygons or run lengths as ``(H, W)`` uint8; pycocotools itself checks nothing."""
    from pycocotools import mask as rle

    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon, height, width)
        if not segmentation:
            raise ValueError("segmentation is empty")
        return rle.decode(rle.merge(rle.frPyObjects(segmentation, height, width)))
    if not isinstance(segmentation, dict):
        raise TypeError(f"segmentation is a {type(segmentation).__name__}")
    if segmentation["size"] != [height, width]:
        raise ValueError(f"its size is {segmentation['size']!r:.40}, not {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = _decompressed(counts)
    if not isinstance(counts, list):
        raise TypeError(f"counts is a {type(counts).__name__}")
    counts = [_whole(count, 0, height * width) for count in counts]
    if sum(counts) != height * width:
        raise ValueError(f"its runs have {sum(counts)} pixels, not {height * width}")
    return rle.decode(rle.frPyObjects({"size": [height, width], "counts": counts}, height, width))


def _check_polygon(polygon: object, height: int, width: int) -> None:
    """Check that a polygon lies near its image: the cost of drawing grows with its coordinates."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("a polygon is no list of three or more points")
    for side, coordinates in ((width, polygon[::2]), (height, polygon[1::2])):
        for value in coordinates:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise TypeError(f"a coordinate is {value!r:.40}")
            if not -side <= value <= 2 * side:
                raise ValueError(f"a coordinate is {value!r:.40}, far outside of the image")


def _decompressed(text: str) -> list[int]:
    """Decode COCO's compressed run lengths, as ``rleFrString`` of pycocotools does."""
    counts: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            # A letter that is missing raises an IndexError.
            letter = ord(text[place]) - 48
            if not 0 <= letter < 64 or shift > 60:
                raise ValueError("counts are no run lengths")
            value |= (letter & 31) << shift
            more = bool(letter & 32)
            place, shift = place + 1, shift + 5
        if letter & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts


def _whole(value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is no whole number")
    if not least <= value <= most:
        raise ValueError(f"{value!r:.40} is not from {least} to {most}")
    return value
