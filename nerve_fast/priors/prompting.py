"""Visual prompts: what stands out of an image so that CLIP says what it is."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

PROMPTS = ("blur", "gray", "circle")

RADIUS = 7
"""Of the Gaussian that blurs, in pixels: 15 × 15."""

SIGMA = 0.3 * (RADIUS - 1) + 0.8
"""Its standard deviation, which OpenCV derives from the size."""

STEPS = ((3, 90), (10, 30), (15, 18))
"""Degrees between corners of an ellipse whose longer half is less than so many pixels; 5 else."""


def prompted(image: Image.Image, mask: NDArray[np.bool_], prompts: tuple[str, ...]) -> Image.Image:
    """An image with what is outside a mask blurred, then grey, and a red ellipse around the mask.

    Luminance has the weights of red and blue exchanged, as the authors' code has it.

    Args:
        image: RGB.
        mask: ``(H, W)``; where it is nowhere true there is no ellipse.
        prompts: of :data:`PROMPTS`, in any order.
    """
    pixels = np.asarray(image)
    if "blur" in prompts:
        pixels = np.where(mask[..., None], pixels, _blurred(pixels))
    if "gray" in prompts:
        grey = np.rint(pixels @ np.array([0.114, 0.587, 0.299])).astype(np.uint8)
        pixels = np.where(mask[..., None], pixels, grey[..., None])
    marked = Image.fromarray(np.ascontiguousarray(pixels))
    if "circle" in prompts and mask.any():
        rows, columns = np.nonzero(mask)
        y, x = int(rows.mean()), int(columns.mean())
        tall, wide = int(np.ptp(rows) + 1) // 2, int(np.ptp(columns) + 1) // 2
        ImageDraw.Draw(marked).line(_ellipse(x, y, wide, tall), fill=(255, 0, 0))
    return marked


def _ellipse(x: int, y: int, wide: int, tall: int) -> list[tuple[int, int]]:
    """The corners of the polygon that OpenCV draws for an ellipse, the first once more."""
    radius = max(wide, tall)
    step = next((step for least, step in STEPS if radius < least), 5)
    angles = [math.radians(angle) for angle in range(0, 361, step)]
    return [
        (math.floor(x + wide * math.cos(a) + 0.5), math.floor(y + tall * math.sin(a) + 0.5))
        for a in angles
    ]


def _blurred(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    offsets = np.arange(-RADIUS, RADIUS + 1)
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    found = pixels.astype(np.float64)
    for axis in (0, 1):
        around = [(RADIUS, RADIUS) if axis == other else (0, 0) for other in range(3)]
        padded = np.pad(found, around, mode="reflect")
        side = found.shape[axis]
        found = sum(
            weight * padded.take(range(start, start + side), axis)
            for start, weight in enumerate(weights)
        )
    return np.rint(found).astype(np.uint8)
