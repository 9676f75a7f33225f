"""What the pipeline gives for an image, and the files it is written to."""

import dataclasses
import functools
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from nerve_fast.errors import InputError
from nerve_fast.imaging import visualize
from nerve_fast.imaging.resampling import to_pixels
from nerve_fast.pipeline.budget import CallPlan
from nerve_fast.utils.files import written_whole

_SOFTWARE = visualize.SOFTWARE.encode()
NPZ_MARK = struct.pack("<HH", 0x464E, len(_SOFTWARE)) + _SOFTWARE
"""An extra field of the first member of ``.npz`` files that this package writes."""


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
