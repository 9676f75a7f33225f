"""Valid images of every format, damaged at random, give an image or one line, nothing else."""

import collections
import io
import random
import resource
import struct

import numpy as np
import pytest
from PIL import Image

from nerve_fast import InputError
from nerve_fast.imaging.images import load_image

MAX_PIXELS = 1 << 20
"""Small, so that a header that is damaged into a huge size cannot hide in a large limit."""

MOST_GROWTH = 400 << 20
"""Bytes by which the process may grow: many times what an image of the limit takes."""

EXTREMES = [0, 1, 2, 7, 127, 128, 255, 256, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


def plain(mode: str) -> Image.Image:
    rows, columns = np.mgrid[:24, :31]
    colors = np.stack([9 * rows, 8 * columns, 4 * rows + 3 * columns], axis=-1).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(colors[..., 0].astype(np.uint16) * 257)
    image = Image.fromarray(colors)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(colors[..., 1]))
    return image.quantize(16) if mode == "P" else image.convert(mode)


def camera_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "a camera", {0x9003: "2024:01:01 00:00:00"}
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    loaded = Image.Exif()
    loaded.load(exif.tobytes())
    return loaded


def originals() -> list[tuple[str, bytes]]:
    """``(format, content)`` of files that Pillow reads."""
    exif = camera_exif()
    described = {"exif": exif, "icc_profile": bytes(range(256)) * 12, "xmp": b"<x:xmpmeta/>" * 9}
    kinds = [
        *(("PNG", mode, {**described, "pnginfo": texts()}) for mode in ("1", "P", "RGBA", "I;16")),
        *(("JPEG", mode, described) for mode in ("L", "RGB", "CMYK")),
        ("JPEG", "RGB", {**described, "progressive": True}),
        ("MPO", "RGB", {"save_all": True, "append_images": [plain("RGB")], "exif": exif}),
        *(("WEBP", "RGBA", {**described, "lossless": lossless}) for lossless in (True, False)),
        *(("AVIF", mode, described) for mode in ("RGB", "RGBA")),
        *(("JPEG2000", mode, {}) for mode in ("L", "RGBA", "I;16")),
        ("JPEG2000", "RGB", {"no_jp2": True}),
        *(("GIF", mode, {"transparency": 1}) for mode in ("L", "P")),
        ("GIF", "P", {"save_all": True, "append_images": [plain("P").rotate(180)]}),
        *((format, mode, {}) for format in ("BMP", "DIB") for mode in ("1", "P", "RGB")),
        *(("PPM", mode, {}) for mode in ("1", "L", "RGB", "I;16")),
        *(("TGA", mode, {}) for mode in ("L", "P", "RGBA")),
        ("TGA", "RGB", {"compression": "tga_rle"}),
        *(("PCX", mode, {}) for mode in ("1", "P", "RGB")),
        *(("SGI", mode, {}) for mode in ("L", "RGB")),
        *(("DDS", mode, {}) for mode in ("L", "RGBA")),
        *(("DDS", "RGBA", {"pixel_format": kind}) for kind in ("DXT1", "DXT5", "BC3")),
        *((format, "RGBA", {}) for format in ("QOI", "ICO", "ICNS")),
        ("ICO", "RGBA", {"bitmap_format": "bmp"}),
    ]
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"):
        modes = ("RGB", "L") if compression == "jpeg" else ("P", "RGB", "CMYK", "I;16")
        # libtiff does not write folders of EXIF data.
        extra = {"exif": exif} if compression == "raw" else {"tiffinfo": {274: 6, 281: 4095}}
        kinds += [("TIFF", mode, {"compression": compression, **extra}) for mode in modes]
    files = []
    for format, mode, options in kinds:
        file = io.BytesIO()
        try:
            plain(mode).save(file, format=format, **options)
        except (KeyError, OSError):  # This build of Pillow lacks the encoder.
            continue
        files.append((format, file.getvalue()))
    files += [
        ("PPM", b"P3 # plain\n3 2 255\n" + b"1 20 255 " * 6),
        ("PPM", b"P2 5 2 1000\n" + b"1 20 255 " * 4),
        ("PPM", b"P6 5 2 65535\n" + bytes(range(60))),
        ("SUN", b"\x59\xa6\x6a\x95" + struct.pack(">7I", 8, 4, 24, 96, 1, 0, 0) + bytes(range(96))),
        ("PSD", photoshop()),
    ]
    return files


def texts():
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", "a text " * 40, zip=True)
    info.add_itxt("XML:com.adobe.xmp", '<tiff:Orientation="3"/>', zip=True)
    return info


def photoshop() -> bytes:
    """An RGB image of 4 × 4 without layers, which Pillow cannot write."""
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 4, 4, 8, 3)
    return head + struct.pack(">III", 0, 0, 0) + struct.pack(">H", 0) + bytes(range(48))


def damaged(content: bytes, others: list[tuple[str, bytes]], chance: random.Random) -> bytes:
    """Bits flipped, numbers replaced, parts cut, moved, repeated or taken from another file."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        if not data:
            break
        # Headers are short and matter most.
        end = chance.choice([min(64, len(data)), min(512, len(data)), len(data)])
        place = chance.randrange(end)
        match chance.randrange(8):
            case 0 | 1:
                for _ in range(chance.choice([1, 1, 3, 8])):
                    data[chance.randrange(end)] ^= 1 << chance.randrange(8)
            case 2:
                data[place] = chance.randrange(256)
            case 3 | 4:
                size, order = chance.choice([1, 2, 4]), chance.choice(["big", "little"])
                number = chance.choice(EXTREMES) % (1 << 8 * size)
                data[place : place + size] = number.to_bytes(size, order)
            case 5:
                del data[place:]
            case 6:
                del data[place : place + chance.choice([1, 2, 4, 30])]
            case 7:
                source = chance.choice([content, chance.choice(others)[1]])
                first = chance.randrange(len(source))
                part = source[first : first + chance.choice([1, 4, 16, 200])]
                data[place : place + chance.choice([0, len(part)])] = part
    return bytes(data)


def read_or_refused(path, which: str) -> tuple[Image.Image | None, str]:
    try:
        return load_image(path, max_pixels=MAX_PIXELS), ""
    except InputError as error:
        return None, str(error)
    except Exception as error:
        raise AssertionError(f"{which}: {error!r}") from error


def test_all_originals_are_read(tmp_path):
    for format, content in originals():
        (tmp_path / "a.image").write_bytes(content)
        assert load_image(tmp_path / "a.image").mode == "RGB", format


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [600, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_images_are_read_or_refused_in_one_line(tmp_path, chance, count):
    files = originals()
    path = tmp_path / "damaged.image"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = collections.Counter()
    for number in range(count):
        format, content = files[number % len(files)]
        path.write_bytes(damaged(content, files, chance))
        image, message = read_or_refused(path, f"image {number}, {format}")
        results[format, "refused" if image is None else "read"] += 1
        if image is None:
            assert message.startswith(f"{path}: "), (number, message)
            assert "\n" not in message, number
            assert len(message) < 400, number
        else:
            assert image.mode == "RGB", number
            assert image.width * image.height <= MAX_PIXELS, number
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        assert grown < MOST_GROWTH, (number, format, grown)
    print(dict(results))
    assert sum(results.values()) == count
    assert any(result == "read" for _, result in results)
    assert any(result == "refused" for _, result in results)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_exif_data_refuses_no_image(tmp_path, chance, count):
    """Bytes of the EXIF data change, its length and place in the file do not."""
    exif = camera_exif()
    files = []
    for format in ("JPEG", "PNG", "WEBP", "AVIF"):
        file = io.BytesIO()
        plain("RGB").save(file, format=format, exif=exif)
        marked = file.getvalue()
        block = exif.tobytes().removeprefix(b"Exif\0\0")
        start = marked.index(block)
        plain("RGB").save(file := io.BytesIO(), format=format)
        files.append((format, marked, start, len(block)))
    path = tmp_path / "damaged.image"
    for number in range(count):
        format, content, start, length = files[number % len(files)]
        data = bytearray(content)
        for _ in range(chance.choice([1, 2, 8, 40])):
            data[start + chance.randrange(length)] = chance.randrange(256)
        path.write_bytes(data)
        image = load_image(path)
        pixels = np.asarray(image)
        (tmp_path / "whole.image").write_bytes(content)
        upright = np.asarray(load_image(tmp_path / "whole.image"))
        # The stored pixels, in one of the eight orientations.
        assert sorted(pixels.shape) == sorted(upright.shape), (number, format)
        assert np.array_equal(
            np.sort(pixels.reshape(-1, 3), axis=0), np.sort(upright.reshape(-1, 3), axis=0)
        ), (number, format)
