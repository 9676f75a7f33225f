"""Images as people have them, turned into 8-bit RGB; and the size at which a model sees them."""

import os
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nerve_fast.errors import InputError, quoted
from nerve_fast.imaging.decoding import (
    GET_HEIF,
    decode,
    decoded,
    opened,
    opened_file,
    reading,
    reads_heif,
)
from nerve_fast.imaging.depth import colors_to_8_bits, grey_to_8_bits
from nerve_fast.imaging.metadata import turning, upright
from nerve_fast.utils.files import shown

__all__ = [
    "PHOTOGRAPHS",
    "UNREADABLE",
    "is_video",
    "load_image",
    "model_size",
    "opened",
    "to_tensor",
    "why_left_out",
]

MAX_LONG_SIDE = 2048
"""The field's limit: images are scaled to ``(2048, S)``, a very long one to less than ``S``."""

MOST_SEEN = 1 << 30
"""Pixels at which a model may see an image: 32,768², more than machines have memory for."""

STRIPE_PIXELS = 1 << 22
"""Pixels that are laid over white at a time."""


def _endings(names: str) -> list[str]:
    return [f".{name}" for name in names.split()]


PHOTOGRAPHS = frozenset(
    _endings(
        "apng avif avifs bmp dds dib gif icns ico j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo "
        "pbm pcx pgm pjp pjpeg png pnm ppm psd qoi ras rgb rgba sgi sun tga tif tiff webp"
    )
)
"""Endings, in lower case, of pictures that are read."""

HEIF = frozenset(_endings("heic heics heif heifs hif"))
"""Endings of pictures that are read where the extra ``heic`` is installed."""

VIDEOS = frozenset(_endings("avi m2ts m4v mkv mov mp4 mpeg mpg mts ogv webm wmv"))
"""Endings of films, which a folder of images may hold too."""

UNREADABLE = {
    ending: reason
    for names, reason in (
        (
            "jxl jxr wdp hdp xcf kra ora clip djvu dcm fits fit xbm xpm "
            "cur pict pct pam flif bpg jng mng",
            "is of a format that is not read; save it as JPEG, PNG or TIFF",
        ),
        (
            "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mrw nef nrw orf pef raf raw rw2 rwl sr2 srf "
            "srw x3f",
            "is a camera's raw file; develop it and save it as JPEG, PNG or TIFF",
        ),
        (
            "ai cdr emf eps epsf epsi ps svg svgz wmf",
            "holds drawing commands instead of pixels; export it as PNG",
        ),
        ("exr hdr pfm", "holds floating-point values; save it as an 8-bit image"),
    )
    for ending in _endings(names)
}
"""Endings, in lower case, of pictures that are not read, and why: the rest of a sentence."""


def is_video(path: Path) -> bool:
    """Whether a path has the ending of a film and is no folder."""
    return path.suffix.lower() in VIDEOS and not path.is_dir()


def why_left_out(path: Path) -> str | None:
    """Why a file in a folder is taken for no image, the rest of a sentence; ``None``: it is one."""
    ending = path.suffix.lower()
    if ending in PHOTOGRAPHS or (ending in HEIF and reads_heif()):
        return None
    if path.is_dir():
        return "is a folder; name it too where its images are wanted"
    if ending in HEIF:
        return f"is a HEIC or HEIF picture; {GET_HEIF}"
    if ending in VIDEOS:
        return "is a video; segment it by itself"
    return UNREADABLE.get(ending, "has no ending of a picture")


def load_image(
    image: Image.Image | np.ndarray | str | os.PathLike, *, max_pixels: int | None = None
) -> Image.Image:
    """The image as a viewer would show it, in RGB.

    The EXIF orientation is applied; transparency is laid over white; 16-bit samples are scaled to
    8 bits, from the range that the file's tags tell or else its values suggest, with a warning
    where that is less than 16 bits; greyscale, palette and CMYK are converted; of an animation the
    first frame is taken. Damaged metadata is ignored with a warning. Decoding and converting take
    about 12 bytes a pixel at most, besides what the format's own decoder takes.

    Args:
        image: a PIL image, a path, or a ``(H, W, 3)`` uint8 array.
        max_pixels: of a file, the number of pixels above which it is refused before it is decoded,
            half of it where a pixel takes 8 bytes; ``None`` is Pillow's own limit, twice
            ``PIL.Image.MAX_IMAGE_PIXELS``, by default 178,956,970.

    Raises:
        InputError: the file is missing, unreadable, damaged, truncated or too large to be safe, of
            a format that is not read, or holds floating-point values or integers above 65535; or
            the array is of another shape or dtype; or ``max_pixels`` is not a positive integer.
        TypeError: ``image`` is none of these.
    """
    if max_pixels is not None and (
        not isinstance(max_pixels, int) or isinstance(max_pixels, bool) or max_pixels < 1
    ):
        raise InputError(f"max_pixels is {max_pixels!r}; expected a positive integer, or None")
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError(
                f"image is an array of shape {image.shape} and dtype {image.dtype}; expected "
                "(H, W, 3) uint8, RGB"
            )
        return Image.fromarray(image)
    if isinstance(image, Image.Image):
        with reading("image"):
            if 0 in image.size:
                raise InputError(f"image: has size {image.width} × {image.height}")
            return _to_rgb(decode(image), None, "image")
    if not isinstance(image, (str, os.PathLike)):
        raise TypeError(
            f"image is a {type(image).__name__}; expected a PIL image, a path, or an array "
            "(H, W, 3) uint8"
        )
    name = shown(image)
    with opened_file(image) as file, reading(name):
        return _to_rgb(*decoded(file, name, max_pixels), name)


def _to_rgb(image: Image.Image, file: IO[bytes] | None, name: str) -> Image.Image:
    """A decoded image, upright and in RGB; its own pixels are freed where it came from ``file``."""
    if image.mode == "F":
        raise InputError(f"{name}: holds floating-point values; save it as an 8-bit image")
    method = turning(image, name)
    plain = image
    if image.mode.startswith("I"):
        plain = grey_to_8_bits(image, file, name)
    elif file is not None:
        plain = colors_to_8_bits(image, file, name)
    turned = plain if method is None else upright(plain, method)
    if file is not None and turned is not image:
        image.close()
    if turned.mode == "La":
        turned = turned.convert("LA")
    return _over_white(turned) if turned.has_transparency_data else turned.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """Transparency laid over white, in stripes: copies of the whole would take 4 bytes a pixel."""
    result = Image.new("RGB", image.size)
    rows = max(STRIPE_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        stripe = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", stripe.size, "white")
        result.paste(Image.alpha_composite(white, stripe).convert("RGB"), box)
    return result


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

    Raises:
        InputError: that would be more than :data:`MOST_SEEN` pixels.
    """
    factor = 1.0
    if short_side is not None:
        if short_side > MOST_SEEN:  # It may have more digits than a float holds.
            raise InputError(
                f"the resolution is {quoted(short_side)} pixels; expected a smaller one, with at "
                f"most {MOST_SEEN} pixels in all"
            )
        longest = max(MAX_LONG_SIDE, 4 * short_side)
        factor = min(short_side / min(size), longest / max(size))
    width, height = (max(round(side * factor / multiple), 1) * multiple for side in size)
    if width * height > MOST_SEEN:
        raise InputError(
            f"at this resolution a model would see {width} × {height} pixels; expected at most "
            f"{MOST_SEEN} in all: take a smaller resolution"
        )
    return width, height


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as ``(3, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
