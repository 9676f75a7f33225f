"""A data set: images, the labels of their pixels, and the words of its classes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nerve_fast.errors import InputError
from nerve_fast.imaging.images import load_image, opened

IGNORED = 255
"""Pixels whose ground truth has this value are not counted."""


@dataclass(frozen=True)
class Sample:
    """One image and its ground truth; ``name`` is unique in the set and fit for a file's name."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Dataset:
    """Images with ground truth.

    Attributes:
        name: what :func:`nerve_fast.datasets.load` was asked for.
        classes: the names of the ``K`` classes, in the order of their labels.
        has_background: class 0 is everything that the others are not.
        samples: in an order that is the same everywhere.
        synonyms: the plain words of each class, its name first; of none where names are all.
        reduce_zero_label: of the files' labels 0 is not counted and ``n`` is class ``n − 1``.
        advice: what makes masks that are not there, or nothing.
        max_pixels: of an image or mask file, above which it is not decoded; ``None`` is Pillow's
            limit.
    """

    name: str
    classes: tuple[str, ...]
    has_background: bool
    samples: tuple[Sample, ...]
    synonyms: tuple[tuple[str, ...], ...] = ()
    reduce_zero_label: bool = False
    advice: str = ""
    max_pixels: int | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, sample: Sample) -> tuple[Image.Image, Tensor]:
        """Read an image and its labels.

        Returns:
            image: RGB.
            labels: ``(H, W)`` uint8 of the image's size, below ``K``, or 255 where pixels are not
                to count.

        Raises:
            InputError: a file is missing or unreadable, the mask is not of the image's size or not
                of one channel, or holds a label that is no class.
        """
        image = load_image(sample.image, max_pixels=self.max_pixels)
        self.check_mask(sample)
        labels = read_mask(sample.mask, self.max_pixels)
        if labels.shape[::-1] != image.size:
            raise InputError(
                f"{sample.mask}: the mask is {labels.shape[1]} × {labels.shape[0]}; expected "
                f"{image.width} × {image.height}, the size of {sample.image}"
            )
        last = len(self.classes) - (not self.reduce_zero_label)
        beyond = labels[((labels < 0) | (labels > last)) & (labels != IGNORED)]
        if beyond.size:
            worst = min(beyond.min(), 0) or beyond.max()
            raise InputError(
                f"{sample.mask}: holds the label {worst}; expected 0 to {last}, or "
                f"{IGNORED} where pixels are not to count"
            )
        labels = labels.astype(np.uint8)
        if self.reduce_zero_label:
            # As mmseg's reduce_zero_label: 0 wraps around to 255, and what was 255 stays it.
            labels = np.where(labels == IGNORED, labels, labels - np.uint8(1))
        return image, torch.from_numpy(labels)

    def check_files(self, sample: Sample) -> None:
        """Raise an :class:`InputError` where the image or its mask is not there."""
        if not is_there(sample.image):
            raise InputError(f"{sample.image}: no such image")
        self.check_mask(sample)

    def check_mask(self, sample: Sample) -> None:
        """Raise an :class:`InputError`, with advice, where the mask is not there."""
        if not is_there(sample.mask):
            advice = f"; {self.advice}" if self.advice else ""
            raise InputError(f"{sample.mask}: no such mask{advice}")


def is_there(path: Path) -> bool:
    """Say whether a file or folder exists.

    Raises:
        InputError: a folder above it is not accessible, or the name is not valid.
    """
    try:
        return path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from error


def read_mask(path: Path, max_pixels: int | None = None) -> np.ndarray:
    """Read the values of a mask, ``(H, W)``, as the file has them: of a palette image the indices.

    Args:
        path: of the file.
        max_pixels: above which it is not decoded, as for
            :func:`~nerve_fast.imaging.images.load_image`.

    Raises:
        InputError: the file is missing or unreadable, is too large, or has several channels.
    """
    with opened(path, max_pixels) as image:
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise InputError(
                f"{path}: the mask is an image of mode {image.mode}; expected one channel that "
                "holds labels, a grey or a palette image"
            )
        return np.array(image, dtype=np.int64 if image.mode.startswith("I") else np.uint8)
