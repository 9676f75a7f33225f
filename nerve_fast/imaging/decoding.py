"""Files decoded by Pillow, bounded in memory; every failure is one line that names the file."""

import contextlib
import importlib.util
import logging
import os
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from nerve_fast.errors import InputError
from nerve_fast.imaging.metadata import without_metadata
from nerve_fast.utils.files import shown
from nerve_fast.utils.text import plain

logger = logging.getLogger(__name__)

FORMATS = (
    *("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "GIF", "BMP", "PPM", "JPEG2000", "DIB", "ICO"),
    *("ICNS", "PCX", "PSD", "QOI", "DDS", "SGI", "SUN", "TGA"),
)
"""Formats that Pillow decodes inside this process, in the order in which they are tried.

Those that start another program (EPS starts Ghostscript), call handlers that others register, or
hand their content to whatever decoder it asks for (IPTC) are left out. TGA has no signature.
"""

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""What a HEIC or HEIF file names itself in its first bytes."""

GET_HEIF = 'to read it: pip install "nerve-fast[heic]"'
"""Advice where the decoder of these is not installed."""

BYTES_PER_PIXEL = 4
"""What the largest image allowed takes a pixel in the file's own depth: 8-bit RGBA."""

_LIMIT_LOCK = threading.Lock()


class NoDecoderError(UnidentifiedImageError):
    """An image is of a format whose decoder is not installed; the message says how to get it."""


@contextlib.contextmanager
def opened(path: str | os.PathLike, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """The image in a file, decoded, with the values that the file holds.

    Args:
        path: a file of one of :data:`FORMATS`; its content says of which.
        max_pixels: the largest image that is decoded, in 8-bit RGBA pixels; ``None`` is twice
            ``PIL.Image.MAX_IMAGE_PIXELS``, above which Pillow refuses too.

    Raises:
        InputError: the file is missing, unreadable, damaged, truncated or too large to be safe.
    """
    with opened_file(path) as file, reading(shown(path)):
        yield decoded(file, shown(path), max_pixels)[0]


@contextlib.contextmanager
def opened_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A regular file that is not empty, opened for reading.

    Raises:
        InputError: it is anything else, or cannot be read.
    """
    name = shown(path)
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{name}: is a folder; expected an image file")
        if not stat.S_ISREG(mode):
            raise InputError(f"{name}: is not a regular file; expected an image file")
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    except InputError:
        raise
    except ValueError as error:  # A null byte in the path.
        raise InputError(f"{name}: cannot be read: {error}") from None
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            raise InputError(f"{name}: the file is empty")
        yield file


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever decoding raises into an :class:`InputError` of one line."""
    try:
        yield
    except InputError:
        raise
    except NoDecoderError as error:
        raise InputError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise InputError(
            f"{name}: not an image, or of a format that is not read (read are {', '.join(FORMATS)})"
        ) from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: too many pixels to decode safely ({_line(error)})") from None
    except MemoryError:
        raise InputError(f"{name}: decoding needs more memory than is available") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{name}: cannot be read: {error.strerror}") from None
        # Decoders report damage through every kind of exception.
        raise InputError(f"{name}: the image is damaged or truncated ({_line(error)})") from None


def _line(error: Exception) -> str:
    text = plain(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def decoded(file: IO[bytes], name: str, max_pixels: int | None) -> tuple[Image.Image, IO[bytes]]:
    """The first image of a file, decoded, and the file that it was read from.

    Where decoding fails, it is tried once more on a copy of the file without its metadata, because
    large or damaged text, color profiles and EXIF data say nothing of the pixels.

    Raises:
        Exception: of any kind, from Pillow.
    """
    try:
        return _decoded(file, max_pixels), file
    except (Image.DecompressionBombError, MemoryError, NoDecoderError):
        raise
    except Exception as error:
        file.seek(0)
        pixels = without_metadata(file)
        if pixels is None:
            raise
        try:
            image = _decoded(pixels, max_pixels)
        except Exception:
            raise error from None
        logger.warning("%s: its metadata is damaged or too large, and is ignored", name)
        return image, pixels


def _decoded(file: IO[bytes], max_pixels: int | None) -> Image.Image:
    image = undecoded(file)
    limit = max_pixels
    if limit is None and Image.MAX_IMAGE_PIXELS is not None:
        limit = 2 * Image.MAX_IMAGE_PIXELS
    if limit is not None:
        check_size(image, limit)
    if isinstance(image, TiffImageFile):
        # Pillow then leaves the file's EXIF folder alone; damage in it is not the pixels'.
        image.is_animated = True
    return decode(image)


def decode(image: Image.Image) -> Image.Image:
    """Decode a lazily opened image, however large, and return it."""
    with _without_pillows_limit(image.size):
        if isinstance(image, TiffImageFile) and image.filename:
            # By name Pillow maps raw files into memory, and rotated ones at a wrong size.
            filename, image.filename = image.filename, ""
            try:
                image.load()
            finally:
                image.filename = filename
        else:
            image.load()
    return image


def undecoded(file: IO[bytes]) -> ImageFile:
    """The image in a file with its header read, as ``Image.open`` gives it.

    ``Image.open`` has a limit of its own, which only a global variable changes.

    Raises:
        UnidentifiedImageError: it is of none of :data:`FORMATS`.
    """
    Image.init()
    file.seek(0)
    prefix = file.read(16)
    failure = None
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None:
            continue
        accepted = accept is None or accept(prefix)
        if not accepted or isinstance(accepted, str):  # Text says what the decoder lacks.
            continue
        file.seek(0)
        try:
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            failure = failure or (error if accept else None)
    # Last: AVIF shares some of the brands.
    if prefix[4:8] == b"ftyp" and prefix[8:12] in HEIF_BRANDS:
        return _undecoded_heif(file)
    raise UnidentifiedImageError(str(failure or "unknown format"))


def reads_heif() -> bool:
    """Whether what decodes HEIC and HEIF is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def _undecoded_heif(file: IO[bytes]) -> ImageFile:
    """As :func:`undecoded`, without registering the format for whoever else uses Pillow."""
    if not reads_heif():
        raise NoDecoderError(f"is a HEIC or HEIF picture; {GET_HEIF}")
    from pillow_heif import HeifImageFile

    file.seek(0)
    try:
        return HeifImageFile(file, "")
    except SyntaxError as error:
        raise UnidentifiedImageError(str(error)) from None


def check_size(image: Image.Image, max_pixels: int) -> None:
    """Refuse, from its header, an image that takes more than :data:`BYTES_PER_PIXEL` × limit.

    Raises:
        DecompressionBombError: it has more than ``max_pixels`` pixels, or more bytes than so many
            pixels of 8-bit RGBA.
    """
    pixels = image.width * image.height
    advice = "raise max_pixels (--max-pixels) where the file is to be trusted"
    if pixels > max_pixels:
        raise Image.DecompressionBombError(
            f"{image.width} × {image.height} are {pixels} pixels, over the limit of {max_pixels}; "
            f"{advice}"
        )
    size = pixels * len(image.getbands()) * sample_bytes(image)
    if size > max_pixels * BYTES_PER_PIXEL:
        raise Image.DecompressionBombError(
            f"{image.width} × {image.height} pixels of mode {image.mode} take {size} bytes, over "
            f"the limit of {max_pixels * BYTES_PER_PIXEL}; {advice}"
        )


def sample_bytes(image: Image.Image) -> int:
    """Bytes of one sample of an undecoded image, in the file or in memory, whichever is more."""
    if image.mode in ("I", "F"):
        return 4
    return 2 if image.mode.startswith("I;16") or ";16" in raw_mode(image) else 1


def raw_mode(image: Image.Image) -> str:
    """Return Pillow's raw mode of an image that is not decoded yet, or ``""``."""
    tile = image.tile[0] if isinstance(image, ImageFile) and image.tile else None
    arguments = tile[3] if tile else None
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return mode if isinstance(mode, str) else ""


@contextlib.contextmanager
def _without_pillows_limit(size: tuple[int, int]) -> Iterator[None]:
    """Lift Pillow's own limit, a global variable, for an image that is above it."""
    if Image.MAX_IMAGE_PIXELS is None or size[0] * size[1] <= Image.MAX_IMAGE_PIXELS:
        yield
        return
    with _LIMIT_LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
