"""An image of a data set and its truth, where what follows fits into memory."""

import torch
from PIL import Image
from torch import Tensor

from nerve_fast.datasets import Dataset, Sample
from nerve_fast.dispatch.machine import free_memory
from nerve_fast.errors import InputError
from nerve_fast.pipeline.budget import SLACK
from nerve_fast.refiners import Refiner
from nerve_fast.utils.units import format_bytes

PIXEL_MEMORY = 80
"""Bytes that labelling a pixel and comparing its label with the truth take, without a refiner."""


def read(
    dataset: Dataset, sample: Sample, words: int, refiner: Refiner | None = None
) -> tuple[Image.Image, Tensor]:
    """Read an image, RGB, and its true labels, ``(H, W)`` uint8.

    Args:
        dataset: that the image is of.
        sample: names its files.
        words: number of maps that a refiner gets.
        refiner: that brings them to the image's pixels.

    Raises:
        InputError: a file cannot be read, or the image is too large for the memory that is free;
            a system that runs out of it would end the whole run.
    """
    image, truth = dataset.read(sample)
    needed = memory_of(image.size, words, refiner)
    free = free_memory(torch.device("cpu"))
    if needed > free:
        raise InputError(
            f"{sample.image}: {image.width} × {image.height} pixels take up to "
            f"{format_bytes(needed)} to evaluate, and {format_bytes(free)} of memory are free"
        )
    return image, truth


def memory_of(size: tuple[int, int], words: int, refiner: Refiner | None) -> int:
    """Bytes that the pixels of an image of ``(width, height)`` take beyond the image itself."""
    refined = refiner.memory(words, size, 0) if refiner else 0
    return SLACK + PIXEL_MEMORY * size[0] * size[1] + refined
