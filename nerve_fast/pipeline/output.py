"""What the pipeline gives for an image, and the files it is written to."""

import dataclasses
import functools
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from nerve_fast.errors import InputError
from nerve_fast.imaging import exports, visualize
from nerve_fast.imaging.resampling import mean_under, to_pixels
from nerve_fast.pipeline.budget import CallPlan
from nerve_fast.pipeline.settings import check_tolerance
from nerve_fast.utils.files import written_whole

_SOFTWARE = visualize.SOFTWARE.encode()
NPZ_MARK = struct.pack("<HH", 0x464E, len(_SOFTWARE)) + _SOFTWARE
"""An extra field of the first member of ``.npz`` files that this package writes."""


class LabelMask(NamedTuple):
    """Where one label is.

    Attributes:
        label: as it was given.
        confidence: its mean probability over its pixels.
        mask: ``(H, W)`` bool.
    """

    label: str
    confidence: float | None
    mask: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentationOutput:
    """What the pipeline found in one image. All tensors are on the CPU.

    Attributes:
        label_map: ``(H, W)`` int64, indices into :attr:`labels`, −1 where there is no label.
        labels: the ``K`` labels as they were given.
        image: the image that was segmented, RGB, of any size.
        prior: ``(K, h, w)`` float32, ``G`` on the token grid.
        walked: ``(K, h, w)`` float32, what the walk made of it.
        steps: ``(K, h, w)`` float32 on the token grid, after each number of steps asked for.
        steps_taken: how many steps the walk took, which ``steps=None`` leaves open.
        plan: how it was carried out; ``plan.config`` has the settings, with the clusters taken.
    """

    label_map: Tensor
    labels: tuple[str, ...]
    image: Image.Image
    prior: Tensor
    walked: Tensor
    steps: Mapping[int, Tensor]
    steps_taken: int
    plan: CallPlan

    @functools.cached_property
    def probabilities(self) -> Tensor:
        """``(K, H, W)`` float32, summing to 1 over ``K``; made and kept when first asked for.

        It takes 4 bytes for each label and pixel, which no plan includes; :meth:`save` writes it
        to a file without it.
        """
        return to_pixels(self.walked, (self.label_map.shape[0], self.label_map.shape[1]))

    @functools.cached_property
    def confidences(self) -> Tensor:
        """``(K,)`` float64: the mean probability of each label over its pixels, ``nan`` without."""
        return mean_under(self.walked, self.label_map)

    def masks(self) -> list[LabelMask]:
        """Where each label is that occurs, in the order of :attr:`labels`; 1 byte a pixel each."""
        one = self.labelled()
        return [
            LabelMask(self.labels[number], one.confidence(number), one.mask(number))
            for number in one.present()
        ]

    def polygons(self, tolerance: float = 1.0) -> list[dict[str, Any]]:
        """The outlines of each label that occurs, with holes, as ``polygons.json`` has them.

        Args:
            tolerance: how far, in pixels, they may be from the edges of the label's pixels; at 0
                they cover these exactly.

        Returns:
            Dictionaries of ``label``, ``number``, ``area`` in pixels, ``confidence`` and
            ``polygons``, see :func:`nerve_fast.imaging.exports.polygons.outlines`.

        Raises:
            InputError: the extra ``exports`` is not installed, or the tolerance is out of range.
            TypeError: the tolerance is no number.
        """
        check_tolerance("tolerance", tolerance)
        exports.need("shapely")
        return exports.polygons.regions(self.labelled(), float(tolerance))

    def to_coco(self, file_name: str = "") -> dict[str, Any]:
        """The result in COCO's form, for JSON: ``images``, ``annotations``, ``categories``.

        Args:
            file_name: of the image, whose id is 1; a category's id is the label's number and 1.

        Raises:
            InputError: the extra ``exports`` is not installed.
        """
        exports.need("pycocotools")
        return exports.coco.document(self.labelled(file_name))

    def labelled(self, image: str = "", stem: str = "") -> exports.Labelled:
        """The result as exports take it, with the names of the image and of its results."""
        return exports.Labelled(
            image=image,
            stem=stem,
            label_map=self.label_map.numpy(),
            labels=self.labels,
            confidences=self.confidences.numpy(),
        )

    def overlay(self) -> Image.Image:
        """The image under its labels' colours, with a legend of the labels that occur."""
        return visualize.overlay(self.image, self.label_map.numpy(), self.labels)

    def save(self, path: str | os.PathLike) -> None:
        """Write the result, whole or not at all.

        Args:
            path: ``.png`` writes the label map as a palette image, the labels in its text chunk
                ``labels``; ``.npz`` writes ``label_map``, ``probabilities`` and ``labels``, the
                probabilities of one label at a time in memory.

        Raises:
            InputError: another ending, or a place that cannot be written.
        """
        path = Path(path)
        writers = {
            ".png": lambda file: visualize.save_label_map(
                file, self.label_map.numpy(), self.labels
            ),
            ".npz": self._save_arrays,
        }
        suffix = path.suffix.lower()
        if suffix not in writers:
            raise InputError(f"{path}: expected a name that ends in .png or .npz")
        with written_whole(path) as file:
            writers[suffix](file)

    def _save_arrays(self, path: Path) -> None:
        """The format of :func:`numpy.savez_compressed`."""
        size = (self.label_map.shape[0], self.label_map.shape[1])
        described = {"descr": "<f4", "fortran_order": False, "shape": (len(self.labels), *size)}
        first = zipfile.ZipInfo("label_map.npy")
        first.compress_type = zipfile.ZIP_DEFLATED
        first.extra = NPZ_MARK
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open(first, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, self.label_map.numpy())
            with archive.open("probabilities.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, described)
                for label in range(len(self.labels)):
                    pixels = to_pixels(self.walked[label : label + 1], size)
                    file.write(np.ascontiguousarray(pixels.numpy(), "<f4").data)
            with archive.open("labels.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.array(self.labels))
