"""Images of more than 8 bits a sample as 8 bits: tags tell the range, else the values do."""

import logging
import re
from collections.abc import Callable, Iterator
from typing import IO, cast

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from nerve_fast.errors import InputError
from nerve_fast.imaging.decoding import decode, raw_mode, undecoded
from nerve_fast.imaging.metadata import png_chunks

logger = logging.getLogger(__name__)

DEPTHS = (8, 10, 12, 14)
"""Bits a sample of sensors and scanners, whose values often lie unscaled in 16 bits."""

BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE_VALUE, PLANAR, SAMPLE_FORMAT = 258, 262, 281, 284, 339
"""TIFF tags."""

STRIPE_VALUES = 1 << 22
"""Samples that are scaled at a time."""

LOW_BYTES = {"LA;16B": "RGBA", "L;16B": "L;16"}
"""By Pillow's name of how 16-bit colors lie in a file, the name that yields their low bytes."""
for _mode in ("RGB", "RGBA", "RGBX", "CMYK"):
    LOW_BYTES[f"{_mode};16B"] = f"{_mode};16L"
    LOW_BYTES[f"{_mode};16L"] = f"{_mode};16B"
    LOW_BYTES[f"{_mode};16N"] = f"{_mode};16B" if np.little_endian else f"{_mode};16L"


def grey_to_8_bits(image: Image.Image, file: IO[bytes] | None, name: str) -> Image.Image:
    """A decoded image of one 16- or 32-bit integer channel as 8 bits.

    Args:
        image: of mode ``I`` or ``I;16``.
        file: what it was read from, where that is known.
        name: of the image, for messages.

    Returns:
        Mode ``L``, or ``LA`` where one value stands for transparency.

    Raises:
        InputError: the image holds negative values, or values above 65535.
    """
    levels = np.asarray(image)
    lowest, highest = int(levels.min()), int(levels.max())
    if lowest < 0 or highest > 65535:
        raise InputError(
            f"{name}: holds integers from {lowest} to {highest}; expected 8 or 16 bits a channel: "
            "save it as an 8-bit image"
        )
    scaled = _scaled(levels, _top(highest, *_declared_bits(image, file), name))
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == 0:  # Zero is white.
        scaled = 255 - scaled
    grey = Image.fromarray(scaled)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(_opacity(levels != transparent))
    return grey


def colors_to_8_bits(image: Image.Image, file: IO[bytes], name: str) -> Image.Image:
    """An image of 8-bit channels, scaled anew where its file holds them in 16 bits unscaled.

    Pillow keeps the high byte of each sample. Of 16-bit samples that hold 8-bit values that is
    nothing, and of those that hold 12-bit values it is 4 bits.

    Args:
        image: as Pillow decoded it.
        file: what it was read from.
        name: of the image, for messages.

    Returns:
        ``image`` itself where its samples have 8 bits or fill 16, else an image of the same mode,
        or of mode ``RGBA`` where one color stands for transparency.

    Raises:
        InputError: a TIFF file holds 16-bit channels in separate planes, which Pillow misreads.
    """
    colored = len(image.getbands()) >= 3
    if not (image.format == "SGI" or (colored and image.format in ("PNG", "TIFF", "PPM"))):
        return image
    header = undecoded(file)
    if not _holds_16_bits(header):
        return image
    separate = isinstance(image, TiffImageFile) and image.tag_v2.get(PLANAR) == 2
    dark = max(band[1] for band in _color_extrema(image)) <= 1 << (max(DEPTHS) - 8)
    if separate and (dark or image.info.get("compression") == "raw"):
        raise InputError(
            f"{name}: holds 16-bit channels in separate planes, which are not read; save it with "
            "interleaved channels"
        )
    transparent = image.info.get("transparency")
    if not dark and transparent is None:
        return image
    stripes = _level_stripes(image, header, file)
    alpha = image.mode == "RGBA"
    largest = np.max([levels.max((0, 1)) for _, levels in stripes()], axis=0)
    top = _top(
        int(largest[:3].max() if alpha else largest.max()), *_declared_bits(image, file), name
    )
    if top == 65535 and transparent is None:
        return image
    result = Image.new("RGBA" if transparent is not None else image.mode, image.size)
    for box, levels in stripes():
        high = image.crop(box)
        scaled = np.array(high) if top == 65535 else _scaled(levels, top)
        if alpha and largest[3] > top:
            scaled[..., 3] = np.asarray(high.getchannel("A"))
        stripe = Image.frombytes(image.mode, high.size, scaled.tobytes())
        if transparent is not None:
            stripe.putalpha(_opacity((levels != np.array(transparent, np.uint16)).any(-1)))
        result.paste(stripe, box)
    return result


def _holds_16_bits(header: ImageFile) -> bool:
    if header.format == "PPM":
        codec, _, _, arguments = header.tile[0]
        return codec != "raw" and isinstance(arguments, tuple) and arguments[1] == 65535
    if header.format == "SGI" and header.tile[0][0] == "SGI16":
        return True
    if isinstance(header, TiffImageFile) and header.tag_v2.get(PLANAR) == 2:
        return max(header.tag_v2[BITS_PER_SAMPLE]) == 16
    return raw_mode(header) in LOW_BYTES


def _color_extrema(image: Image.Image) -> list[tuple[int, int]]:
    extrema = list(cast(tuple[tuple[int, int], ...], image.getextrema()))
    if len(image.getbands()) == 1:
        return [cast(tuple[int, int], tuple(extrema))]
    return extrema[:3] if image.mode == "RGBA" else extrema


def _level_stripes(
    image: Image.Image, header: ImageFile, file: IO[bytes]
) -> Callable[[], Iterator[tuple[tuple[int, int, int, int], np.ndarray]]]:
    """A function that iterates over stripes: the box, and ``(H, W, C)`` uint16 with all bits."""
    width, height = image.size
    rows = max(STRIPE_VALUES // (width * len(image.getbands())), 1)
    boxes = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    codec, _, offset, _ = header.tile[0]
    if codec == "ppm":

        def read(box):
            file.seek(offset + box[1] * width * 6)
            content = file.read((box[3] - box[1]) * width * 6)
            return np.frombuffer(content, ">u2").reshape(-1, width, 3)

        return lambda: ((box, read(box)) for box in boxes)
    if codec in ("ppm_plain", "SGI16"):
        file.seek(offset)
        whole = (_plain_levels if codec == "ppm_plain" else _sgi_levels)(file.read(), image)
        return lambda: ((box, whole[box[1] : box[3]]) for box in boxes)
    raw = raw_mode(header)
    tiles = []
    for tile in header.tile:
        low_bytes, given = LOW_BYTES[raw], tile[3]
        args = (low_bytes, *given[1:]) if isinstance(given, tuple) else low_bytes
        tiles.append(type(tile)(*tile[:3], args))
    header.tile = tiles
    decode(header)

    def join(box):
        low = np.asarray(header.crop(box))
        if raw == "LA;16B":
            grey, alpha = (low[..., i].astype(np.uint16) << 8 | low[..., i + 1] for i in (0, 2))
            return np.stack([grey, grey, grey, alpha], axis=-1)
        return np.asarray(image.crop(box)).astype(np.uint16) << 8 | low

    return lambda: ((box, join(box)) for box in boxes)


def _plain_levels(text: bytes, image: Image.Image) -> np.ndarray:
    """``(H, W, 3)`` uint16 of what follows the header of a plain (ASCII) PPM file."""
    numbers = re.sub(rb"#[^\r\n]*[\r\n]?", b"", text)
    count = 3 * image.width * image.height
    levels = np.fromstring(numbers, np.uint16, count, sep=" ")
    return levels.reshape(image.height, image.width, 3)


def _sgi_levels(content: bytes, image: Image.Image) -> np.ndarray:
    """``(H, W, C)`` uint16 of uncompressed planes, which begin with their lowest row."""
    channels = len(image.getbands())
    count = channels * image.width * image.height
    planes = np.frombuffer(content, ">u2", count).reshape(channels, image.height, image.width)
    return planes[:, ::-1].transpose(1, 2, 0).astype(np.uint16)


def _declared_bits(image: Image.Image, file: IO[bytes] | None) -> tuple[int | None, int]:
    """Bits a sample by the file's tags, ``None`` where they are silent; and bits it lies in."""
    if isinstance(image, TiffImageFile):
        return _declared_by_tiff(image.tag_v2)
    if image.format == "PNG" and file is not None:
        said = next((content for kind, content, _ in png_chunks(file) if kind == b"sBIT"), b"")
        bits = max(said[:3] if len(said) >= 3 else said[:1], default=0)
        return (bits if 1 <= bits <= 16 else None), 16
    if image.format == "PPM" and file is not None:
        codec, _, _, arguments = undecoded(file).tile[0]
        # Pillow scales by the largest value declared; writers say 65535 whatever the values are.
        largest = arguments[1] if isinstance(arguments, tuple) else None
        return (16 if codec != "raw" and largest != 65535 else None), 16
    if image.format == "SGI" and file is not None:
        file.seek(16)
        largest = int.from_bytes(file.read(4), "big")
        return (largest.bit_length() if 255 <= largest < 65535 else None), 16
    if image.format == "JPEG2000" and file is not None:
        file.seek(0)
        size = file.read(1 << 16).partition(b"\xff\x4f\xff\x51")[2]
        # Pillow scales samples of fewer bits to 16.
        return (16 if size[38:39] and (size[38] & 0x7F) + 1 < 16 else None), 16
    return None, 16


def _declared_by_tiff(tags) -> tuple[int | None, int]:
    bits = max(tags.get(BITS_PER_SAMPLE, (16,)))
    signed = bits == 16 and tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    container = 15 if signed else min(bits, 16)
    largest = tags.get(MAX_SAMPLE_VALUE)
    largest = max(largest) if isinstance(largest, tuple) and largest else largest
    if isinstance(largest, int) and 0 < largest < 1 << container:
        # The tag may hold the largest value that occurs, so it tells the number of bits only.
        return largest.bit_length(), container
    return (bits if bits < 16 else None), container


def _top(highest: int, declared: int | None, container: int, name: str) -> int:
    """The value that stands for white; says so where it is not the largest that fits."""
    if declared is not None and highest < 1 << declared:
        source, bits = "by its tags", declared
    else:
        source = f"as its largest value is {highest}"
        bits = next((d for d in DEPTHS if d < container and highest < 1 << d), container)
    top = (1 << bits) - 1
    if bits < 16 and highest > 0:
        logger.warning("%s: holds %d-bit values %s; 0 to %d is its range", name, bits, source, top)
    return top


def _scaled(levels: np.ndarray, top: int) -> np.ndarray:
    """``levels`` in uint8, ``top`` becoming 255 and what is above it too."""
    scaled = np.empty(levels.shape, np.uint8)
    rows = max(STRIPE_VALUES // max(levels[0].size, 1), 1)
    for first in range(0, len(levels), rows):
        stripe = np.round(levels[first : first + rows] / (top / 255))
        scaled[first : first + rows] = np.minimum(stripe, 255)
    return scaled


def _opacity(opaque: np.ndarray) -> Image.Image:
    return Image.fromarray(opaque.astype(np.uint8) * 255)
