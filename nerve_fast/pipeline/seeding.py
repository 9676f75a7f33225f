"""Which seeds belong to which image of a run over files."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from nerve_fast.errors import InputError
from nerve_fast.priors.seeds import Boxes, Points, read_scribbles
from nerve_fast.utils.provenance import file_digest
from nerve_fast.utils.units import parse_pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedSettings:
    """Clicks, boxes and scribbles of the images of a run: immutable.

    Attributes:
        points, boxes: of the one image, see :class:`~nerve_fast.NervePipeline`.
        points_by_image: points by the name of the image's file, or by its path.
        scribbles: a mask image of the one image, see
            :func:`~nerve_fast.priors.seeds.read_scribbles`.
        scribble_labels: names of the numbers in the mask; without them the numbers themselves.
        max_pixels: of the mask's file, as for
            :class:`~nerve_fast.pipeline.asked.SegmentSettings`.
    """

    points: Points | None = None
    boxes: Boxes | None = None
    points_by_image: Mapping[str, Points] | None = None
    scribbles: str | os.PathLike | None = None
    scribble_labels: Sequence[str] = ()
    max_pixels: int | str | None = None

    def __bool__(self) -> bool:
        return any((self.points, self.boxes, self.points_by_image, self.scribbles))

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels that any image's seeds may have.

        Raises:
            InputError: the mask of scribbles has no names and cannot be read.
        """
        each = [self.points, self.boxes, *(self.points_by_image or {}).values()]
        # What is of another form is refused where it is read.
        names = [name for given in each if isinstance(given, Mapping) for name in given]
        if self.scribbles is not None:
            # Of numbers those that occur: 255 may.
            names += self.scribble_labels or self._marked()
        return tuple(dict.fromkeys(names))

    def _marked(self) -> dict[str, np.ndarray]:
        labels = self.scribble_labels or [str(number) for number in range(1, 256)]
        limit = None if self.max_pixels is None else parse_pixels(self.max_pixels)
        return read_scribbles(cast(str | os.PathLike, self.scribbles), labels, limit)

    def check(self, images: int) -> None:
        """Refuse seeds of one image where there are several.

        Raises:
            InputError: there are.
        """
        given = {"points": self.points, "boxes": self.boxes, "scribbles": self.scribbles}
        for name, seeds in given.items():
            if seeds and images > 1:
                raise InputError(
                    f"{name} are of one image, and there are {images}; pass one image, or a file "
                    "with the points of each"
                )

    def of(self, path: Path) -> dict:
        """The arguments ``points``, ``boxes`` and ``scribbles`` of a call on an image.

        Raises:
            InputError: the points file does not name the image, or the mask cannot be read.
        """
        points = self.points
        if self.points_by_image is not None:
            for name in (str(path), path.name):
                points = self.points_by_image.get(name, points)
        scribbles = None
        if self.scribbles is not None:
            scribbles = self._marked()
        return {"points": points, "boxes": self.boxes, "scribbles": scribbles}

    def to_dict(self) -> dict:
        """Return everything that results depend on, for JSON."""
        mask = None
        if self.scribbles is not None and Path(self.scribbles).is_file():
            mask = file_digest(Path(self.scribbles))
        given = dataclasses.asdict(self)
        del given["max_pixels"]
        return {**given, "scribbles": mask}
