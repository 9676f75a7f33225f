"""What files say beside their pixels: orientation, and metadata removed where it is damaged."""

import io
import logging
import zlib
from collections.abc import Iterator
from typing import IO

from PIL import Image

logger = logging.getLogger(__name__)

ORIENTATION = 0x0112
"""The EXIF tag."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation, what turns an image upright; 1 is upright already."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
"""Chunks that a PNG's pixels are made of."""


def turning(image: Image.Image, name: str) -> Image.Transpose | None:
    """Return the transposition that an EXIF orientation asks for; ``None`` where it is damaged."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Damaged metadata raises every kind of exception.
        logger.warning("%s: its EXIF data is damaged; the image is taken as it lies", name)
        return None
    if not isinstance(orientation, int) or not 0 <= orientation <= 8:
        logger.warning(
            "%s: its EXIF orientation is damaged, expected 1 to 8; the image is taken as it lies",
            name,
        )
        return None
    return UPRIGHT.get(orientation)


def upright(image: Image.Image, method: Image.Transpose) -> Image.Image:
    """An image turned, without what would have it turned once more by whoever takes it next."""
    turned = image.transpose(method)
    for name in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        turned.info.pop(name, None)
    return turned


def without_metadata(file: IO[bytes]) -> IO[bytes] | None:
    """A copy of a PNG, JPEG or AVIF file that holds its pixels only; ``None`` of another file."""
    start = file.read(16)
    file.seek(0)
    if start.startswith(PNG_SIGNATURE):
        return _png_pixels(file)
    if start.startswith(b"\xff\xd8\xff"):
        return _jpeg_pixels(file)
    if start[4:8] == b"ftyp":
        # libavif leaves items of an unknown type alone. The items are listed before the pixels.
        head, mark, pixels = file.read().partition(b"mdat")
        return io.BytesIO(head.replace(b"Exif", b"free") + mark + pixels)
    return None


def png_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The chunks of a PNG before its end, or where it is damaged: ``(type, content, checksum)``."""
    file.seek(len(PNG_SIGNATURE))
    while len(head := file.read(8)) == 8:
        content = file.read(int.from_bytes(head[:4], "big"))
        checksum = file.read(4)
        if len(checksum) < 4 or head[4:] == b"IEND":
            return
        yield head[4:], content, checksum


def _png_pixels(file: IO[bytes]) -> IO[bytes]:
    pixels = io.BytesIO()
    pixels.write(PNG_SIGNATURE)
    for kind, content, checksum in png_chunks(file):
        if kind in PNG_PIXELS:
            pixels.write(len(content).to_bytes(4, "big") + kind + content + checksum)
    pixels.write(b"\0\0\0\0IEND" + zlib.crc32(b"IEND").to_bytes(4, "big"))
    pixels.seek(0)
    return pixels


def _jpeg_pixels(file: IO[bytes]) -> IO[bytes]:
    pixels = io.BytesIO()
    pixels.write(file.read(2))
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        if 0xE0 <= head[1] <= 0xEF or head[1] == 0xFE:
            content = file.read(max(int.from_bytes(head[2:], "big") - 2, 0))
            # These two say how colors are stored.
            if (head[1] == 0xE0 and len(content) >= 14) or (head[1] == 0xEE and len(content) >= 12):
                pixels.write(head + content)
            continue
        pixels.write(head)
        if head[1] == 0xDA:  # Compressed pixels follow up to the file's end.
            break
        pixels.write(file.read(max(int.from_bytes(head[2:], "big") - 2, 0)))
    pixels.write(file.read())
    pixels.seek(0)
    return pixels
