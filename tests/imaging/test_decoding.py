"""What is opened, what is refused before it is decoded, and what each refusal says."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nerve_fast import InputError
from nerve_fast.imaging import decoding
from nerve_fast.imaging.images import (
    PHOTOGRAPHS,
    UNREADABLE,
    load_image,
    opened,
    why_left_out,
)
from nerve_fast.imaging.metadata import without_metadata


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height, bits, color) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)


def png_of_zeros(width, height, bits, channels, color, *extra: bytes) -> bytes:
    packer, data = zlib.compressobj(9), []
    row = b"\0" * (1 + (width * bits * channels + 7) // 8)
    for _ in range(height):
        data.append(packer.compress(row))
    data.append(packer.flush())
    return (
        png_header(width, height, bits, color)
        + b"".join(extra)
        + chunk(b"IDAT", b"".join(data))
        + chunk(b"IEND", b"")
    )


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 20
%%EndComments
newpath 0 0 moveto 20 20 lineto stroke
showpage
%%EOF
"""


@pytest.mark.parametrize("name", ["a.eps", "a.png", "a.jpg"])
def test_no_image_starts_another_program(tmp_path, monkeypatch, name):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / name).write_bytes(EPS)
    with pytest.raises(InputError, match="of a format that is not read"):
        load_image(tmp_path / name)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    "content",
    [
        EPS,
        b"GRIB" + bytes(4) + b"\x01" + bytes(40),
        b"\x89HDF\r\n\x1a\n" + bytes(60),
        b"BUFR" + bytes(60),
        b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(60),
        b"%PDF-1.4\n" + bytes(60),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\0\0\0\x20ftypheic" + bytes(60),
        b'/* XPM */\nstatic char *a[] = {"1 1 1 1", "a c #000000", "a"};',
    ],
)
def test_other_formats_are_refused_by_their_content(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="not an image, or of a format that is not read"):
        load_image(tmp_path / "a.png")


def test_the_formats_read_are_none_that_start_programs_or_call_handlers():
    assert not {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "FPX", "MIC", "IPTC"} & set(decoding.FORMATS)
    Image.init()
    assert set(decoding.FORMATS) <= set(Image.OPEN)


def test_endings_are_either_read_or_named():
    assert not PHOTOGRAPHS & set(UNREADABLE)
    for ending in (*PHOTOGRAPHS, *UNREADABLE):
        assert ending.startswith(".")
        assert ending == ending.lower()
    assert {".jfif", ".jpg", ".tif", ".webp", ".pgm"} <= PHOTOGRAPHS
    assert {".jpe", ".pjpeg", ".pjp"} <= PHOTOGRAPHS
    assert {".cr2", ".dng", ".svg", ".eps", ".exr", ".jxl"} <= set(UNREADABLE)
    Image.init()
    ours = {e for e, name in Image.registered_extensions().items() if name in decoding.FORMATS}
    # What Pillow names as endings of these formats is read, but for floating-point and rare ones.
    assert ours - PHOTOGRAPHS - set(UNREADABLE) <= {".vda", ".icb", ".vst", ".bw"}


def test_size_is_refused_by_mode_before_decoding(tmp_path):
    """The header alone, without any pixels: the limit is what answers, not the missing pixels."""
    limit = 100 * 100
    cases = [
        (100, 100, 8, 2, False),
        (101, 100, 8, 2, True),
        (100, 100, 8, 6, False),
        (100, 100, 16, 2, True),
        (66, 100, 16, 2, False),
        (50, 100, 16, 6, False),
        (51, 100, 16, 6, True),
        (100, 100, 16, 0, False),
        (100, 100, 1, 0, False),
    ]
    for width, height, bits, color, refused in cases:
        content = png_header(width, height, bits, color) + chunk(b"IDAT", b"")
        (tmp_path / "a.png").write_bytes(content)
        said = "too many pixels to decode safely" if refused else "damaged or truncated"
        with pytest.raises(InputError, match=said):
            load_image(tmp_path / "a.png", max_pixels=limit)


def heic(path, image, **given):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(image).save(path, quality=-1, **given)
    return path


@pytest.mark.parametrize("turned", [1, 6])
def test_a_heic_is_read_upright_and_registered_nowhere(tmp_path, turned):
    colors = Image.new("RGB", (64, 48), "red")
    colors.paste("blue", (0, 0, 32, 48))
    exif = Image.Exif()
    exif[0x0112] = turned
    path = heic(tmp_path / "a.heic", colors, exif=exif.tobytes())
    found = np.asarray(load_image(path)).astype(int)
    expected = np.asarray(colors if turned == 1 else colors.rotate(-90, expand=True)).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 8
    assert "HEIF" not in Image.OPEN
    with pytest.raises(InputError, match=r"pixels, over the limit of 100; raise max_pixels"):
        load_image(path, max_pixels=100)


def test_a_damaged_heic_is_one_line(tmp_path):
    path = heic(tmp_path / "a.heic", Image.effect_noise((64, 48), 50).convert("RGB"))
    content = path.read_bytes()
    for damaged in (content[:40], content[: len(content) // 2], content[:12] + bytes(200)):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="a.heic: ") as caught:
            load_image(path)
        assert "\n" not in str(caught.value)


def test_without_its_decoder_a_heic_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x20ftypheic" + bytes(60))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r'is a HEIC .*: pip install "nerve-fast\[heic\]"'):
        load_image(path)
    assert why_left_out(path).startswith("is a HEIC or HEIF picture; to read it: pip install")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "PPM", "WEBP", "AVIF"])
def test_max_pixels_bounds_every_format(tmp_path, format):
    image = Image.new("RGB", (30, 20), "red")
    image.save(tmp_path / "a.image", format=format)
    assert load_image(tmp_path / "a.image", max_pixels=600).size == (30, 20)
    with pytest.raises(InputError, match=r"30 × 20 are 600 pixels, over the limit of 599; raise"):
        load_image(tmp_path / "a.image", max_pixels=599)


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True])
def test_max_pixels_is_a_positive_integer(value):
    with pytest.raises(InputError, match="max_pixels is .*; expected a positive integer"):
        load_image(Image.new("RGB", (1, 1)), max_pixels=value)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG"])
def test_pillows_limit_is_the_default_and_the_users_word_raises_it(tmp_path, monkeypatch, format):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.image", format=format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    with pytest.raises(InputError, match="over the limit of 598"):
        load_image(tmp_path / "a.image")
    assert load_image(tmp_path / "a.image", max_pixels=600).size == (30, 20)
    assert Image.MAX_IMAGE_PIXELS == 299
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(tmp_path / "a.image").size == (30, 20)


PEAK = """
import resource, sys
from nerve_fast.errors import InputError
from nerve_fast.imaging.images import load_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(load_image(sys.argv[1]).size)
except InputError as error:
    print(error)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.parametrize("kind", ["palette", "color and alpha of 16 bits", "cut"])
def test_a_small_file_of_many_pixels_takes_bounded_memory(tmp_path, kind):
    """36 megapixels in a few kilobytes; decoding and the result are what has to be held."""
    side = 6000
    content = {
        "palette": lambda: png_of_zeros(
            side, side, 8, 1, 3, chunk(b"PLTE", bytes(range(6))), chunk(b"tRNS", b"\x80\x10")
        ),
        "color and alpha of 16 bits": lambda: png_of_zeros(side, side, 16, 4, 6),
        "cut": lambda: png_of_zeros(side, side, 8, 3, 2)[:5000],
    }[kind]()
    assert len(content) < 400_000
    (tmp_path / "a.png").write_bytes(content)
    started = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "a.png"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said, grown = started.stdout.strip().splitlines()
    assert ("truncated" in said) == (kind == "cut")
    assert int(grown) < 13 * side * side + (100 << 20)


def test_damaged_text_and_large_profiles_refuse_no_pixels(tmp_path, caplog):
    image = Image.effect_noise((20, 10), 50).convert("RGB")
    expected = image.tobytes()
    info = PngInfo()
    info.add_text("Comment", "a" * (3 << 20), zip=True)
    image.save(tmp_path / "text.png", pnginfo=info)
    image.save(tmp_path / "profile.png", icc_profile=bytes(3 << 20))
    whole = io.BytesIO()
    info = PngInfo()
    info.add_text("Comment", "a text")
    image.save(whole, "PNG", pnginfo=info)
    (tmp_path / "checksum.png").write_bytes(whole.getvalue().replace(b"a text", b"a test"))
    for name in ("text.png", "profile.png", "checksum.png"):
        assert load_image(tmp_path / name).tobytes() == expected
        assert f"{name}: its metadata is damaged or too large, and is ignored" in caplog.text
    image.save(tmp_path / "large.tif", icc_profile=bytes(3 << 20))
    assert load_image(tmp_path / "large.tif").tobytes() == expected


def test_damaged_pixels_stay_refused(tmp_path):
    file = io.BytesIO()
    Image.effect_noise((40, 40), 50).save(file, "PNG")
    content = file.getvalue()
    for damaged in (
        content.replace(b"IHDR\0\0\0\x28", b"IHDR\0\0\0\x29"),
        content[: len(content) // 2],
        content.replace(b"IDAT", b"IDAt"),
    ):
        (tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(InputError):
            load_image(tmp_path / "a.png")


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_file_without_its_metadata_has_the_same_pixels(format):
    exif = Image.Exif()
    exif[271] = "maker"
    whole = io.BytesIO()
    Image.new("RGB", (9, 7), (200, 30, 10)).save(whole, format, exif=exif)
    with Image.open(without_metadata(io.BytesIO(whole.getvalue()))) as bare:
        assert not bare.getexif()
        with Image.open(whole) as image:
            assert image.getexif()
            assert image.tobytes() == bare.tobytes()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_damaged_exif_data_leaves_the_image_as_it_lies(tmp_path, caplog, format):
    image = Image.new("RGB", (30, 20), "red")
    image.paste("blue", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 1
    exif[0x010F] = "a camera's maker"
    image.save(tmp_path / "a.image", format=format, exif=exif, quality=95)
    content = (tmp_path / "a.image").read_bytes()
    expected = load_image(tmp_path / "a.image").tobytes()
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    assert block in content
    for damaged in (b"XX" + block[2:], block[:4] + b"\xff\xff\xff\xff" + block[8:]):
        caplog.clear()
        (tmp_path / "a.image").write_bytes(content.replace(block, damaged))
        assert load_image(tmp_path / "a.image").tobytes() == expected
        assert len(caplog.messages) <= 1


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_what_has_been_turned_is_not_turned_again(ending, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / f"a.{ending}", exif=exif)
    once = load_image(tmp_path / f"a.{ending}")
    assert once.size == load_image(once).size == (30, 40)


def test_an_orientation_that_there_is_not_is_said(tmp_path, caplog):
    exif = Image.Exif()
    exif[0x0112] = 9
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (30, 20)
    assert "a.jpg: its EXIF orientation is damaged, expected 1 to 8" in caplog.text


def test_places_that_are_no_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "file").write_text("a")
    cases = {
        "pipe.png": "is not a regular file",
        "loop.png": "cannot be read: Too many levels",
        "gone.png": "no such file",
        "file/a.png": "cannot be read: Not a directory",
        "nul\0.png": "nul\\x00.png: cannot be read: embedded null byte",
        "line\nbreak.png": "line\\nbreak.png: no such file",
        os.fsdecode(b"no utf-8 \xff.png"): "no utf-8 \\udcff.png: no such file",
    }
    for name, said in cases.items():
        with pytest.raises(InputError) as caught:
            load_image(f"{tmp_path}/{name}")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        str(caught.value).encode()


@pytest.mark.parametrize("error", [ValueError, RuntimeError, NotImplementedError, TypeError,
                                   MemoryError, RecursionError, KeyError, AssertionError,
                                   ZeroDivisionError, OverflowError, zlib.error])  # fmt: skip
def test_whatever_a_decoder_raises_is_one_line(tmp_path, monkeypatch, error):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.bmp")

    def fail(*_):
        raise error("one\nline " + "and more " * 100)

    monkeypatch.setattr("PIL.BmpImagePlugin.BmpImageFile.load", fail, raising=False)
    with pytest.raises(InputError) as caught:
        load_image(tmp_path / "a.bmp")
    assert str(caught.value).startswith(f"{tmp_path}/a.bmp: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


def test_an_interruption_is_not_a_damaged_image(tmp_path, monkeypatch):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.bmp")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.BmpImagePlugin.BmpImageFile.load", interrupt, raising=False)
    with pytest.raises(KeyboardInterrupt):
        load_image(tmp_path / "a.bmp")


def test_opened_gives_the_values_of_the_file(tmp_path):
    labels = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300
    Image.fromarray(labels).save(tmp_path / "a.png")
    with opened(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), labels)
