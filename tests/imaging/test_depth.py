"""Files of 16 bits a sample whose values fill fewer, against pixels that the test made."""

import logging
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from nerve_fast import InputError
from nerve_fast.imaging import depth
from nerve_fast.imaging.images import load_image

DEPTHS = (8, 10, 12, 14, 16)


def values(depth: int, channels: int | None, dtype=np.uint16) -> np.ndarray:
    """All of the range, its largest value among them."""
    rng = np.random.default_rng(depth)
    shape = (9, 13) if channels is None else (9, 13, channels)
    levels = rng.integers(0, 1 << depth, shape, endpoint=False)
    levels[4, 5] = (1 << depth) - 1
    return levels.astype(dtype)


def png(path, levels: np.ndarray, *chunks: tuple[bytes, bytes]):
    """A 16-bit PNG of 1 to 4 channels; Pillow writes grey ones only."""
    height, width = levels.shape[:2]
    channels = 1 if levels.ndim == 2 else levels.shape[2]
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = levels.astype(">u2").reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in [(b"IHDR", header), *chunks, (b"IDAT", content), (b"IEND", b"")]:
            file.write(struct.pack(">I", len(data)) + kind + data)
            file.write(struct.pack(">I", zlib.crc32(kind + data)))
    return path


def tiff(path, levels, **options):
    tifffile.imwrite(path, levels, **options)
    return path


def netpbm(path, levels, largest=65535):
    kind = "P5" if levels.ndim == 2 else "P6"
    header = f"{kind}\n{levels.shape[1]} {levels.shape[0]}\n{largest}\n".encode()
    path.write_bytes(header + levels.astype(">u2").tobytes())
    return path


def plain_netpbm(path, levels):
    """A PGM or PPM of numbers in ASCII, with a comment in every row."""
    kind = "P2" if levels.ndim == 2 else "P3"
    rows = [f"# row {i}\n{' '.join(map(str, row.ravel()))}\n" for i, row in enumerate(levels)]
    header = f"{kind}\n{levels.shape[1]} {levels.shape[0]}\n65535\n"
    path.write_text(header + "".join(rows))
    return path


def sgi(path, levels, *, compressed=False, largest=65535):
    """A 16-bit SGI, whose planes begin with their lowest row."""
    planes = levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)
    channels, height, width = planes.shape
    sizes = (2 if levels.ndim == 2 else 3, width, height, channels, 0, largest)
    header = struct.pack(">HBBHHHHII", 474, compressed, 2, *sizes).ljust(512, b"\0")
    rows = [row.astype(">u2").tobytes() for plane in planes for row in plane[::-1]]
    if compressed:
        # Each row a run of values as they are, and the end of the row.
        rows = [struct.pack(">H", 0x80 | width) + row + b"\0\0" for row in rows]
        first, length = 512 + 8 * len(rows), len(rows[0])
        starts = [first + i * length for i in range(len(rows))]
        header += struct.pack(f">{len(rows)}I", *starts)
        header += struct.pack(f">{len(rows)}I", *[length] * len(rows))
    path.write_bytes(header + b"".join(rows))
    return path


def as_rgb(levels: np.ndarray, top: int) -> np.ndarray:
    seen = levels / top * 255
    return np.repeat(seen[..., None], 3, axis=-1) if seen.ndim == 2 else seen


WRITERS = {
    "PNG grey": (png, None, {}),
    "PNG RGB": (png, 3, {}),
    "TIFF grey": (tiff, None, {"photometric": "minisblack"}),
    "TIFF grey, big-endian": (tiff, None, {"photometric": "minisblack", "byteorder": ">"}),
    "TIFF grey, deflate": (tiff, None, {"photometric": "minisblack", "compression": "zlib"}),
    "TIFF RGB": (tiff, 3, {"photometric": "rgb"}),
    "TIFF RGB, big-endian": (tiff, 3, {"photometric": "rgb", "byteorder": ">"}),
    "TIFF RGB, deflate": (tiff, 3, {"photometric": "rgb", "compression": "zlib"}),
    "TIFF RGB, big-endian, deflate": (
        tiff, 3, {"photometric": "rgb", "compression": "zlib", "byteorder": ">"},
    ),
    "TIFF RGB, strips": (tiff, 3, {"photometric": "rgb", "rowsperstrip": 2}),
    "TIFF RGB, tiles": (tiff, 3, {"photometric": "rgb", "tile": (16, 16)}),
    "PGM": (netpbm, None, {}),
    "PPM": (netpbm, 3, {}),
    "PGM, plain": (plain_netpbm, None, {}),
    "PPM, plain": (plain_netpbm, 3, {}),
    "SGI grey": (sgi, None, {}),
    "SGI RGB": (sgi, 3, {}),
    "SGI grey, compressed": (sgi, None, {"compressed": True}),
    "SGI RGB, compressed": (sgi, 3, {"compressed": True}),
}  # fmt: skip


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("writer", WRITERS)
def test_values_of_fewer_bits_are_seen_and_said(tmp_path, caplog, writer, depth):
    write, channels, options = WRITERS[writer]
    levels = values(depth, channels)
    path = write(tmp_path / "a.image", levels, **options)
    loaded = np.asarray(load_image(path)).astype(float)
    assert np.abs(loaded - as_rgb(levels, (1 << depth) - 1)).max() <= 1
    assert (f"{path}: holds {depth}-bit values" in caplog.text) == (depth < 16)
    if depth < 16:
        assert f"as its largest value is {levels.max()}; 0 to {(1 << depth) - 1}" in caplog.text


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_pil_image_gives_the_same(caplog, depth):
    levels = values(depth, None)
    for image in (Image.fromarray(levels), Image.fromarray(levels.astype(np.int32))):
        loaded = np.asarray(load_image(image)).astype(float)
        assert np.abs(loaded - as_rgb(levels, (1 << depth) - 1)).max() <= 0.5
    assert ("image: holds" in caplog.text) == (depth < 16)


@pytest.mark.parametrize(
    ("channels", "kind"), [(None, "PNG"), (3, "PNG"), (None, "TIFF"), (3, "TIFF")]
)
@pytest.mark.parametrize("declared", [10, 12, 16])
def test_tags_tell_the_range_of_a_dark_image(tmp_path, caplog, channels, kind, declared):
    dark = values(8, channels)
    path = tmp_path / "a.image"
    if kind == "PNG":
        png(path, dark, (b"sBIT", bytes([declared] * (channels or 1))))
    else:
        largest = (1 << declared) - 1
        tag = (281, 3, 3, [largest] * 3, True) if channels else (281, 3, 1, largest, True)
        tiff(path, dark, photometric="rgb" if channels else "minisblack", extratags=[tag])
    loaded = np.asarray(load_image(path)).astype(float)
    assert np.abs(loaded - as_rgb(dark, (1 << declared) - 1)).max() <= 1
    assert (f"holds {declared}-bit values by its tags" in caplog.text) == (declared < 16)


def test_a_tag_that_the_values_exceed_is_not_believed(tmp_path):
    levels = values(16, None)
    for path in (
        png(tmp_path / "a.png", levels, (b"sBIT", b"\x0c")),
        tiff(
            tmp_path / "a.tif",
            levels,
            photometric="minisblack",
            extratags=[(281, 3, 1, 4095, True)],
        ),
    ):
        assert np.abs(np.asarray(load_image(path)) - as_rgb(levels, 65535)).max() <= 0.5


def test_a_largest_sample_that_only_occurs_does_not_stretch_the_range(tmp_path, caplog):
    levels = values(16, None) // 2
    path = tmp_path / "a.tif"
    tiff(path, levels, photometric="minisblack", extratags=[(281, 3, 1, int(levels.max()), True)])
    assert np.abs(np.asarray(load_image(path)) - as_rgb(levels, 32767)).max() <= 0.5
    assert "holds 15-bit values by its tags" in caplog.text


@pytest.mark.parametrize("largest", [255, 1000, 4095, 65535])
def test_a_netpbm_header_tells_the_range(tmp_path, largest):
    levels = np.minimum(values(8, None), largest).astype(np.uint16)
    path = tmp_path / "a.pgm"
    if largest == 255:
        path.write_bytes(b"P5 13 9 255\n" + levels.astype(np.uint8).tobytes())
    else:
        netpbm(path, levels, largest)
    # Writers declare 65535 for any 16-bit array.
    top = 255 if largest == 65535 else largest
    assert np.abs(np.asarray(load_image(path)) - as_rgb(levels, top)).max() <= 1


def test_a_12_bit_jpeg_2000_image_that_is_dark_stays_dark(tmp_path, caplog):
    levels = values(8, None)
    # The image's own precision, in the codestream's SIZ marker.
    Image.fromarray(levels).save(tmp_path / "a.j2k", no_jp2=True)
    content = bytearray((tmp_path / "a.j2k").read_bytes())
    place = content.index(b"\xff\x4f\xff\x51") + 42
    assert content[place] == 15
    load_image(tmp_path / "a.j2k")
    assert "holds 8-bit values" in caplog.text
    caplog.clear()
    content[place] = 11
    (tmp_path / "a.j2k").write_bytes(content)
    load_image(tmp_path / "a.j2k")
    assert not caplog.records


@pytest.mark.parametrize("depth", [8, 12, 16])
def test_alpha_of_16_bits_is_laid_over_white(tmp_path, depth):
    top = (1 << depth) - 1
    for channels in (2, 4):
        levels = values(depth, channels)
        loaded = np.asarray(load_image(png(tmp_path / "a.png", levels)))
        alpha = levels[..., -1:] / top
        expected = levels[..., :-1] / top * 255 * alpha + 255 * (1 - alpha)
        assert np.abs(loaded - expected).max() <= 2


def test_full_alpha_over_8_bit_colors_is_opaque(tmp_path):
    levels = np.concatenate([values(8, 3), np.full((9, 13, 1), 65535, np.uint16)], axis=-1)
    loaded = np.asarray(load_image(png(tmp_path / "a.png", levels)))
    assert np.array_equal(loaded, levels[..., :3])


def test_one_transparent_16_bit_color_is_white_and_its_neighbours_are_not(tmp_path):
    grey = np.array([[1000, 1001, 65535]], np.uint16)
    loaded = load_image(png(tmp_path / "grey.png", grey, (b"tRNS", struct.pack(">H", 1000))))
    assert np.asarray(loaded)[0, :, 0].tolist() == [255, 4, 255]
    colors = np.array([[(1000, 2000, 60000), (1001, 2000, 60000)]], np.uint16)
    color = struct.pack(">3H", 1000, 2000, 60000)
    loaded = load_image(png(tmp_path / "colors.png", colors, (b"tRNS", color)))
    assert np.asarray(loaded).tolist() == [[[255, 255, 255], [3, 7, 234]]]


def test_zero_is_white_where_the_tiff_says_so(tmp_path):
    for levels, compression in ((values(16, None), None), (values(16, None), "zlib")):
        path = tmp_path / "a.tif"
        tiff(path, levels, photometric="miniswhite", compression=compression)
        assert np.abs(np.asarray(load_image(path)) - as_rgb(65535 - levels, 65535)).max() <= 0.5


def test_signed_samples_have_15_bits(tmp_path):
    levels = values(15, None, np.int16)
    path = tiff(tmp_path / "a.tif", levels, photometric="minisblack")
    assert np.abs(np.asarray(load_image(path)) - as_rgb(levels, 32767)).max() <= 0.5
    tiff(path, -levels, photometric="minisblack")
    with pytest.raises(InputError, match="integers from -32767 to -"):
        load_image(path)


def test_separate_planes_of_16_bits_are_refused_where_pillow_misreads_them(tmp_path):
    planes = np.moveaxis(values(16, 3), -1, 0)
    path = tmp_path / "a.tif"
    tiff(path, planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(InputError, match="16-bit channels in separate planes"):
        load_image(path)
    tiff(path, planes, photometric="rgb", planarconfig="separate", compression="zlib")
    assert np.abs(np.asarray(load_image(path)) - as_rgb(values(16, 3), 65535)).max() <= 1


def test_orientation_and_range_together(tmp_path):
    levels = values(12, 3)
    path = tmp_path / "a.tif"
    tiff(path, levels, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    expected = np.rot90(as_rgb(levels, 4095), -1)
    assert np.abs(np.asarray(load_image(path)) - expected).max() <= 1


def test_a_black_image_says_nothing(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    load_image(png(tmp_path / "a.png", np.zeros((4, 4), np.uint16)))
    load_image(png(tmp_path / "b.png", np.zeros((4, 4, 3), np.uint16)))
    assert not caplog.records


@pytest.mark.parametrize("writer", ["PNG RGB", "TIFF RGB, deflate", "PPM"])
def test_stripes_are_the_whole(tmp_path, monkeypatch, writer):
    write, channels, options = WRITERS[writer]
    path = write(tmp_path / "a.image", values(12, channels), **options)
    whole = load_image(path).tobytes()
    monkeypatch.setattr(depth, "STRIPE_VALUES", 100)
    assert load_image(path).tobytes() == whole


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("channels", [None, 3, 4])
def test_an_sgi_header_tells_the_range(tmp_path, channels, compressed):
    levels = values(12, channels) // 8
    if channels == 4:
        levels[..., 3] = 4095
    path = sgi(tmp_path / "a.sgi", levels, compressed=compressed, largest=4095)
    expected = as_rgb(levels if channels is None else levels[..., :3], 4095)
    assert np.abs(np.asarray(load_image(path)) - expected).max() <= 0.5 + 1e-6
