"""Images as people have them, turned into 8-bit RGB; and the size at which a model sees them."""

import contextlib
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nerve_fast.errors import InputError

MAX_LONG_SIDE = 2048
"""The field's limit: images are scaled to ``(2048, S)``, a very long one to less than ``S``."""


def load_image(image: Image.Image | np.ndarray | str | os.PathLike) -> Image.Image:
    """The image as a viewer would show it, in RGB.

    The EXIF orientation is applied; transparency is laid over white; 16-bit greyscale is scaled to
    8 bits; greyscale, palette and CMYK are converted; of an animation the first frame is taken.

    Args:
        image: a PIL image, a path, or a ``(H, W, 3)`` uint8 array.

    Raises:
        InputError: the file is missing, unreadable, truncated or too large to be safe, or the array
            is of another shape or dtype.
        TypeError: ``image`` is none of these.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError(
                f"image is an array of shape {image.shape} and dtype {image.dtype}; expected "
                "(H, W, 3) uint8, RGB"
            )
        return Image.fromarray(image)
    if isinstance(image, Image.Image):
        with _reading("image"):
            return _to_rgb(image, "image")
    if not isinstance(image, (str, os.PathLike)):
        raise TypeError(
            f"image is a {type(image).__name__}; expected a PIL image, a path, or an array "
            "(H, W, 3) uint8"
        )
    path = Path(image)
    with opened(path) as file:
        return _to_rgb(file, str(path))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The image in a file as Pillow opens it, to be decoded within the block.

    Raises:
        InputError: the file is missing, unreadable, truncated or too large to be safe.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; expected an image file")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    with warnings.catch_warnings(), _reading(str(path)):
        # Pillow warns from 89 megapixels on and refuses from twice that; large is our business.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            yield image


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Around what decodes an image: what Pillow raises becomes an :class:`InputError`."""
    try:
        yield
    except UnidentifiedImageError:
        raise InputError(f"{name}: not an image, or of a format that Pillow cannot read") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: too many pixels to decode safely ({error})") from None
    except PermissionError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    except (OSError, SyntaxError, EOFError, struct.error) as error:
        # Pillow reports damaged files through all of these.
        raise InputError(f"{name}: the image is damaged or truncated ({error})") from None


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise InputError(f"{name}: the image has size {image.width} × {image.height}")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise InputError(
                f"{name}: holds integers from {levels.min()} to {levels.max()}; expected 8 or 16 "
                "bits a channel: save it as an 8-bit image"
            )
        # 32-bit integers say nothing of their range: small ones are 8-bit values in a wide type.
        step = 1 if image.mode == "I" and levels.max() <= 255 else 257
        return Image.fromarray(np.round(levels / step).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise InputError(f"{name}: holds floating-point values; save it as an 8-bit image")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def model_size(size: tuple[int, int], short_side: int | None, multiple: int) -> tuple[int, int]:
    """The size at which a model sees an image: same shape, sides a multiple of ``multiple``.

    The short side becomes ``short_side``, unless the long one would then exceed 2048 pixels and
    four short sides: such an image gets a long side of that length.

    Args:
        size: ``(width, height)`` of the image, in pixels.
        short_side: wanted length of the short side, in pixels; ``None`` keeps the image's size.
        multiple: both sides are rounded to the nearest multiple of this, at least one.

    Returns:
        ``(width, height)``.
    """
    factor = 1.0
    if short_side is not None:
        longest = max(MAX_LONG_SIDE, 4 * short_side)
        factor = min(short_side / min(size), longest / max(size))
    width, height = (max(round(side * factor / multiple), 1) * multiple for side in size)
    return width, height


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as ``(3, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
