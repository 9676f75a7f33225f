"""Clicks, boxes and scribbles as a prior: tokens whose labels are known (design: *seeds*)."""

import dataclasses
import math
import numbers
import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nerve_fast.errors import InputError, quoted
from nerve_fast.imaging.images import opened
from nerve_fast.numerics import is_finite
from nerve_fast.utils.labels import check_text

Points = Mapping[str, Sequence[tuple[float, float]]]
"""``(x, y)`` in pixels of the image, from its top left corner, by label."""

Boxes = Mapping[str, Sequence[tuple[float, float, float, float]]]
"""``(left, top, right, bottom)`` in pixels, the right and bottom edges outside, by label."""

Scribbles = Mapping[str, "np.ndarray | Image.Image"]
"""A mask of the image's size by label; what is not 0 has the label."""


@dataclasses.dataclass(frozen=True, eq=False)
class Seeds:
    """Which pixels of one image have which labels.

    Attributes:
        labels: names, in the order in which they were given.
        pixels: ``(H, W)`` int64, an index into :attr:`labels`, or −1 where nothing is said.
    """

    labels: tuple[str, ...]
    pixels: Tensor

    @classmethod
    def of(
        cls,
        image_size: tuple[int, int],
        *,
        points: Points | None = None,
        boxes: Boxes | None = None,
        scribbles: Scribbles | None = None,
    ) -> "Seeds | None":
        """The seeds of an image of ``image_size = (width, height)``, ``None`` where none are given.

        Raises:
            InputError: a label is no text on one line, a seed lies outside of the image, a label
                has no seed, two labels meet in a pixel, or a mask has another size.
            TypeError: an argument is not as described.
        """
        given = {"points": points, "boxes": boxes, "scribbles": scribbles}
        for name, seeds in given.items():
            if seeds is not None and not isinstance(seeds, Mapping):
                raise TypeError(
                    f"{name} is a {type(seeds).__name__}; expected a dictionary from labels to "
                    f"{name}"
                )
            for label in seeds or ():
                if not isinstance(label, str):
                    raise TypeError(f"{name} has the label {quoted(label)}; expected a string")
                check_text(f"a label of the {name}", label)
        if not any(given.values()):
            return None
        width, height = image_size
        labels = tuple(dict.fromkeys(label for seeds in given.values() for label in seeds or ()))
        pixels = torch.full((height, width), -1, dtype=torch.int64)
        for label, places in (points or {}).items():
            for x, y in _each("point", label, places, 2):
                _check_inside("point", label, (x, y), x, y, image_size)
                _mark(pixels, (slice(int(y), int(y) + 1), slice(int(x), int(x) + 1)), label, labels)
        for label, rectangles in (boxes or {}).items():
            for left, top, right, bottom in _each("box", label, rectangles, 4):
                place = (left, top, right, bottom)
                _check_inside("box", label, place, left, top, image_size)
                if not (left < right <= width and top < bottom <= height):
                    raise InputError(
                        f"the box {_text(place)} of {label!r} is empty or reaches beyond the image "
                        f"of {width} × {height} pixels; expected left, top, right, bottom"
                    )
                rows = slice(int(top), max(math.ceil(bottom), int(top) + 1))
                columns = slice(int(left), max(math.ceil(right), int(left) + 1))
                _mark(pixels, (rows, columns), label, labels)
        for label, scribble in (scribbles or {}).items():
            drawn = np.asarray(scribble)
            if drawn.dtype.kind not in "biuf":
                raise TypeError(
                    f"the scribbles of {label!r} are of {drawn.dtype}; expected a mask of numbers"
                )
            mask = torch.from_numpy(np.atleast_1d(drawn != 0))
            if tuple(mask.shape) != (height, width):
                raise InputError(
                    f"the scribbles of {label!r} have shape {tuple(mask.shape)}; expected "
                    f"{(height, width)}, as the image has {width} × {height} pixels"
                )
            if not mask.any():
                raise InputError(f"the label {label!r} has no scribble; mark one or leave it out")
            _mark(pixels, mask, label, labels)
        return cls(labels, pixels)

    def prior(
        self,
        grid: tuple[int, int],
        labels: Sequence[str],
        words: Tensor | None = None,
        own: slice = slice(None),
    ) -> Tensor:
        """The node-to-label matrix ``G`` of these seeds.

        Without words a row is one-hot over the number of seeds of its label, so that a label with
        many seeds does not outweigh one with few, and zero where nothing is said. With words it is
        theirs where nothing is said, and one-hot where something is.

        Args:
            grid: ``(h, w)`` of the tokens.
            labels: all ``K`` labels of the result, these seeds' among them.
            words: ``(N, K)`` float32, the prior of the words.
            own: the tokens of the grid that are wanted, and that the words' prior is of.

        Returns:
            ``(N, K)`` float32.
        """
        h, w = grid
        height, width = self.pixels.shape
        y, x = (self.pixels >= 0).nonzero().unbind(1)
        tokens = (y * h // height) * w + x * w // width
        names = torch.tensor([labels.index(label) for label in self.labels])
        share = torch.zeros(h * w, len(labels))
        share.index_put_((tokens, names[self.pixels[y, x]]), torch.tensor(1.0), accumulate=True)
        total = share.sum(1, keepdim=True)
        share = share / total.clamp(min=1)
        if words is not None:
            return torch.where(total[own].to(words.device) > 0, share[own].to(words), words)
        return share[own] / share.sum(0).clamp(min=torch.finfo(share.dtype).tiny)

    def overrule(self, label_map: Tensor, labels: Sequence[str]) -> Tensor:
        """A label map ``(H, W)`` of the image's size in which each seeded pixel keeps its label."""
        names = torch.tensor([labels.index(label) for label in self.labels])
        return torch.where(self.pixels >= 0, names[self.pixels], label_map)


def read_scribbles(
    mask: "np.ndarray | Image.Image | str | os.PathLike",
    labels: Sequence[str],
    max_pixels: int | None = None,
) -> dict[str, np.ndarray]:
    """A mask image as scribbles: its value ``v`` above 0 stands for the ``v``-th of the labels.

    Args:
        mask: ``(H, W)`` of whole numbers: an array, a greyscale or palette image, or its path.
        labels: the names.
        max_pixels: of a file, above which it is not decoded, as for
            :func:`~nerve_fast.imaging.images.load_image`.

    Raises:
        InputError: the file cannot be read, the mask is no such image, or it holds a value that no
            label stands for.
    """
    if isinstance(mask, (str, os.PathLike)):
        with opened(mask, max_pixels) as image:
            return read_scribbles(image, labels)
    if isinstance(mask, Image.Image) and mask.mode not in ("L", "P", "1", "I", "I;16"):
        raise InputError(
            f"the scribbles are an image of mode {mask.mode}; expected a greyscale or palette "
            "image whose values are the labels' numbers, 0 where nothing is said"
        )
    values = np.array(mask)
    if values.ndim != 2 or not (
        np.issubdtype(values.dtype, np.integer) or values.dtype == np.bool_
    ):
        raise InputError(
            f"the scribbles have shape {values.shape} and dtype {values.dtype}; expected (H, W) of "
            "whole numbers"
        )
    present = np.unique(values)
    present = present[present != 0]
    if len(present) == 0 or present.min() < 0 or present.max() > len(labels):
        found = ", ".join(map(str, present[:5])) or "nothing but 0"
        raise InputError(
            f"the scribbles hold {found}; expected values from 1 to {len(labels)}, the numbers of "
            f"the labels {'; '.join(labels)}"
        )
    return {labels[value - 1]: values == value for value in present.astype(int)}


def _each(kind: str, label: str, places, numbers_of_one: int):
    """The places of a label as tuples of numbers."""
    try:
        places = [tuple(place) for place in places]
    except TypeError:
        places = None
    if places is None or not all(
        len(place) == numbers_of_one
        and all(isinstance(x, numbers.Real) and is_finite(x) for x in place)
        for place in places
    ):
        form = "(x, y)" if numbers_of_one == 2 else "(left, top, right, bottom)"
        raise InputError(f"the {kind}s of {label!r} are not a list of {form} in pixels")
    if not places:
        raise InputError(f"the label {label!r} has no {kind}; give it one or leave it out")
    return [tuple(float(x) for x in place) for place in places]


def _check_inside(kind, label, place, x, y, image_size) -> None:
    width, height = image_size
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(
            f"the {kind} {_text(place)} of {label!r} lies outside of the image of {width} × "
            f"{height} pixels"
        )


def _mark(pixels: Tensor, where, label: str, labels: Sequence[str]) -> None:
    number = labels.index(label)
    marked = pixels[where]
    others = marked[(marked >= 0) & (marked != number)]
    if len(others):
        raise InputError(
            f"the seeds of {labels[int(others[0])]!r} and {label!r} overlap in {len(others)} "
            "pixels; a pixel may have one label only"
        )
    pixels[where] = number


def _text(place) -> str:
    return ",".join(f"{x:g}" for x in place)
