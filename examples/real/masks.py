"""Outlines drawn for this project: ``masks/NAME.json`` read, checked, and made into label maps.

A file holds where the photograph comes from, its size, its labels, shapes and clicks. Shapes are
painted in their order, later ones over earlier ones; a shape without a polygon covers everything,
one of the label ``ignore`` counts nowhere. Pixels within ``border`` pixels of where two labels meet
count nowhere either. Coordinates are ``[x, y]`` in pixels of the photograph, from its upper left
corner.
"""

import dataclasses
import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import max_pool2d

from nerve_fast.errors import InputError
from nerve_fast.evaluation.metrics import IGNORED

FOLDER = Path(__file__).parent / "masks"
IGNORE = "ignore"
KEYS = {
    "source": dict,
    "licence": str,
    "origin": str,
    "may_be_shown": bool,
    "size": list,
    "labels": list,
    "border": int,
    "shapes": list,
    "clicks": dict,
}
SOURCE_KEYS = ("package", "version", "path", "sha256")


@dataclasses.dataclass(frozen=True)
class Mask:
    """One file. ``clicks`` are the hand-made ones, a list a label, in the order of ``labels``."""

    name: str
    source: dict[str, str]
    licence: str
    origin: str
    may_be_shown: bool
    size: tuple[int, int]
    labels: tuple[str, ...]
    border: int
    shapes: tuple[tuple[str, tuple[tuple[float, float], ...] | None], ...]
    clicks: tuple[tuple[tuple[int, int], ...], ...]

    def label_map(self) -> Tensor:
        """``(H, W)`` int64: a label's number, or 255 where nothing counts."""
        return with_border(rasterised(self.size, self.labels, self.shapes), self.border)


def read(path: Path) -> Mask:
    """Read and check a file.

    Raises:
        InputError: the file is not as the module's documentation has it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    check(found, path.name)
    shapes = tuple(
        (shape["label"], shape["polygon"] and tuple(map(tuple, shape["polygon"])))
        for shape in found["shapes"]
    )
    clicks = tuple(tuple(map(tuple, found["clicks"][label])) for label in found["labels"])
    changed = {"size": tuple(found["size"]), "labels": tuple(found["labels"])}
    return Mask(path.stem, **{**found, **changed, "shapes": shapes, "clicks": clicks})


def check(found: dict, name: str) -> None:
    """Raises :class:`InputError` where it is not as the module's documentation has it."""

    def require(holds, expected):
        if not holds:
            raise InputError(f"{name}: {expected}")

    require(isinstance(found, dict) and set(found) == set(KEYS), f"the keys must be {list(KEYS)}")
    for key, kind in KEYS.items():
        require(isinstance(found[key], kind), f"{key} must be of the type {kind.__name__}")
    source = found["source"]
    require(tuple(source) == SOURCE_KEYS, f"the keys of source must be {SOURCE_KEYS}")
    require(len(source["sha256"]) == 64, "sha256 must have 64 digits")
    width, height = found["size"]
    labels = found["labels"]
    require(len(set(labels)) == len(labels) > 1, "labels must differ and be two or more")
    require(IGNORE not in labels, f"{IGNORE!r} is no label")
    require(found["shapes"][0]["polygon"] is None, "the first shape must cover everything")
    painted = set()
    for shape in found["shapes"]:
        require(set(shape) == {"label", "polygon"}, "a shape has a label and a polygon")
        require(shape["label"] in [*labels, IGNORE], f"{shape['label']!r} is not in labels")
        painted.add(shape["label"])
        polygon = shape["polygon"]
        require(polygon is None or len(polygon) > 2, "a polygon has three points or more")
        for x, y in polygon or []:
            inside = -30 <= x <= width + 30 and -30 <= y <= height + 30
            require(inside, f"the point ({x}, {y}) is far outside {width} × {height}")
    require(set(labels) <= painted, "every label must have a shape")
    require(list(found["clicks"]) == labels, "clicks must have the labels, in their order")
    for label, points in found["clicks"].items():
        require(points, f"{label} has no click")
        for x, y in points:
            require(0 <= x < width and 0 <= y < height, f"the click ({x}, {y}) is outside")


def rasterised(size: tuple[int, int], labels, shapes) -> Tensor:
    """Shapes painted one after another: ``(H, W)`` int64, 255 for ``ignore``."""
    painted = Image.new("L", size, IGNORED)
    draw = ImageDraw.Draw(painted)
    for label, polygon in shapes:
        value = IGNORED if label == IGNORE else labels.index(label)
        if polygon is None:
            painted.paste(value, (0, 0, *size))
        else:
            draw.polygon(polygon, fill=value)
    width, height = size
    return (
        torch.frombuffer(bytearray(painted.tobytes()), dtype=torch.uint8).view(height, width).long()
    )


def with_border(labels: Tensor, border: int) -> Tensor:
    """The map with 255 within ``border`` pixels (in either direction) of where two values meet."""
    if not border:
        return labels
    values = labels.float()[None]
    side = 2 * border + 1
    largest = max_pool2d(values, side, stride=1, padding=border)
    smallest = -max_pool2d(-values, side, stride=1, padding=border)
    return labels.masked_fill((largest != smallest)[0], IGNORED)


def all_masks() -> list[Mask]:
    """Of every file, by name."""
    return [read(path) for path in sorted(FOLDER.glob("*.json"))]
