"""Images resized to the bit as the field's benchmarks do, through mmseg, mmcv and OpenCV."""

import numpy as np
from PIL import Image

from nerve_fast.imaging.images import MAX_LONG_SIDE


def mmseg_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """``(width, height)`` by mmseg's ``Resize(scale=(2048, short_side), keep_ratio=True)``.

    The factor is the smaller of ``2048 / long`` and ``short_side / short``; mmcv rounds half up.
    """
    factor = min(MAX_LONG_SIDE / max(size), short_side / min(size))
    width, height = (int(side * factor + 0.5) for side in size)
    return width, height


def opencv_bilinear(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at ``size = (width, height)`` as OpenCV's ``INTER_LINEAR`` has it.

    Bilinear between the four pixels around a place, also where the image shrinks: Pillow's filter
    of that name averages over more pixels then. Weights have 11 bits, and what the columns make is
    cut by 4 and by 16 bits before it is rounded, which is a level less in one pixel of eight.
    """
    if image.size == size:
        return image
    pixels = np.asarray(image).astype(np.int32)
    left, right, weights = _neighbours(image.width, size[0])
    rows = pixels[:, left] * weights[0, :, None] + pixels[:, right] * weights[1, :, None]
    rows >>= 4
    above, below, weights = _neighbours(image.height, size[1])
    weights = weights[..., None, None]
    quarters = (rows[above] * weights[0] >> 16) + (rows[below] * weights[1] >> 16)
    return Image.fromarray(((quarters + 2) >> 2).astype(np.uint8))


def _neighbours(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pixels on the two sides of each place, and their weights out of 2048."""
    place = ((np.arange(wanted) + 0.5) * (1 / (wanted / length)) - 0.5).astype(np.float32)
    first = np.floor(place)
    share = place - first
    weights = np.rint(np.stack([1 - share, share]) * 2048).astype(np.int32)
    first, second = (side.astype(np.int32).clip(0, length - 1) for side in (first, first + 1))
    return first, second, weights
