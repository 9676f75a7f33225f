"""Modes × formats × compressions × orientations, against pixels that the test made."""

import io

import numpy as np
import pytest
from PIL import Image

from nerve_fast import InputError
from nerve_fast.imaging.images import load_image

SIZE = (11, 14)
"""Rows and columns, as stored."""

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")

WRITTEN = [
    (format, options, modes.split())
    for format, several, modes in (
        ("PNG", [{}, {"compress_level": 0}, {"optimize": True}], "1 L LA P RGB RGBA I;16"),
        *(
            ("TIFF", [{"compression": name}], " ".join(MODES))
            for name in (
                *("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "lzma"),
                "zstd",
            )
        ),
        ("TIFF", [{"compression": "raw", "big_tiff": True}], " ".join(MODES)),
        ("TIFF", [{"compression": "jpeg", "quality": 100}], "L RGB CMYK"),
        ("TIFF", [{"compression": "group3"}, {"compression": "group4"}], "1"),
        ("JPEG", [{"quality": 100, "subsampling": 0}, {"quality": 100, "progressive": True}],
         "1 L RGB CMYK"),
        ("WEBP", [{"lossless": True, "exact": True}], "L LA P RGB RGBA"),
        ("WEBP", [{"quality": 100}], "L RGB RGBA"),
        ("AVIF", [{"quality": 100, "subsampling": "4:4:4"}], "L LA RGB RGBA"),
        ("JPEG2000", [{}, {"irreversible": True}], "L LA RGB RGBA CMYK I;16"),
        ("JPEG2000", [{"no_jp2": True}], "L RGB I;16"),
        ("BMP", [{}], "1 L P RGB"),
        ("DIB", [{}], "1 L P RGB"),
        ("GIF", [{}, {"interlace": 0}], "1 L P"),
        ("PPM", [{}], "1 L RGB I;16 I F"),
        ("TGA", [{}, {"compression": "tga_rle"}], "1 L LA P RGB RGBA"),
        ("PCX", [{}], "1 L P RGB"),
        ("SGI", [{}], "L RGB RGBA"),
        ("QOI", [{}], "RGB RGBA"),
        ("DDS", [{}], "L LA RGB RGBA"),
    )
    for options in several
]  # fmt: skip
"""What Pillow writes without changing pixels, or with few changes."""

ORIENTED = {"PNG", "TIFF", "JPEG", "WEBP", "AVIF"}
"""Formats that carry an EXIF orientation, as Pillow writes them."""


def pixels(mode: str) -> np.ndarray:
    """Smooth stored values, the same everywhere, that no orientation leaves as they are."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    red, green, blue = 20 * rows + columns, 15 * columns + rows, 128 + 5 * rows - 5 * columns
    alpha = 255 - 12 * rows - 4 * columns
    if mode == "1":
        return (columns + 2 * rows < 15).astype(np.uint8) * 255
    if mode == "P":
        return ((rows // 2 + columns // 3) % 7).astype(np.uint8)
    if mode in ("I;16", "I"):
        return (red * 250 + 9000).astype(np.uint16 if mode == "I;16" else np.int32)
    if mode == "F":
        return red.astype(np.float32)
    if mode == "CMYK":
        return np.stack([red, green, blue, alpha // 3], axis=-1).astype(np.uint8)
    channels = [red] if mode in ("L", "LA") else [red, green, blue]
    channels += [alpha] if mode in ("LA", "RGBA") else []
    return np.stack(channels, axis=-1).astype(np.uint8).squeeze()


PALETTE = np.array(
    [(255, 0, 0), (0, 160, 0), (30, 30, 255), (9, 9, 9), (250, 250, 0), (0, 200, 200), (255,) * 3],
    np.uint8,
)


def stored(mode: str) -> Image.Image:
    image = Image.fromarray(pixels(mode)) if mode not in ("1", "P", "CMYK") else None
    if mode == "1":
        image = Image.fromarray(pixels(mode)).convert("1", dither=Image.Dither.NONE)
    elif mode == "P":
        image = Image.fromarray(pixels(mode))
        image.putpalette(PALETTE.tobytes())
    elif mode == "CMYK":
        image = Image.frombytes("CMYK", SIZE[::-1], pixels(mode).tobytes())
    assert image.mode == mode
    return image


def seen(mode: str) -> np.ndarray:
    """What a person sees, ``(H, W, 3)`` in [0, 255], computed without Pillow."""
    values = pixels(mode).astype(np.float64)
    if mode == "P":
        return PALETTE[pixels(mode)].astype(np.float64)
    if mode == "I;16":
        values = values / 257
    if mode == "CMYK":
        return (255 - values[..., :3]) * (255 - values[..., 3:]) / 255
    if mode in ("LA", "RGBA"):
        alpha = values[..., -1:] / 255
        values = values[..., :-1] * alpha + 255 * (1 - alpha)
    values = values.reshape(*SIZE, -1)
    return np.broadcast_to(values, (*SIZE, 3)) if values.shape[-1] == 1 else values


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """What the stored rows and columns mean by the EXIF standard."""
    across = array.swapaxes(0, 1)
    return {
        1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1],
        5: across, 6: across[:, ::-1], 7: across[::-1, ::-1], 8: across[::-1],
    }[orientation]  # fmt: skip


def written(mode: str, format: str, options: dict, orientation: int = 1) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    if format in ORIENTED:
        options = {**options, "exif": exif}
    stored(mode).save(file, format=format, **options)
    return file.getvalue()


def can_be_written(mode: str, format: str, options: dict) -> bool:
    try:
        written(mode, format, options)
    except (OSError, ValueError, KeyError, SystemError, RuntimeError):
        return False
    return True


TABLE = [
    (mode, format, options)
    for format, options, modes in WRITTEN
    for mode in modes
    if can_be_written(mode, format, options)
]
"""Builds of Pillow without some codec have a shorter one."""


def named(case) -> str:
    mode, format, options = case
    return "-".join([format, mode, *(f"{key}={value}" for key, value in options.items())])


def test_the_table_holds_what_pillow_writes():
    kinds = {(format, mode) for mode, format, _ in TABLE}
    assert len(TABLE) > 100
    assert len({named(case) for case in TABLE}) == len(TABLE)
    assert {("TIFF", mode) for mode in MODES} <= kinds
    assert {("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")} <= kinds
    assert {format for format, _ in kinds} >= {"JPEG", "WEBP", "BMP", "GIF", "PPM"}


@pytest.mark.parametrize("case", TABLE, ids=named)
def test_an_image_is_read_as_a_person_sees_it(tmp_path, case):
    mode, format, options = case
    for orientation in range(1, 9) if format in ORIENTED else [1]:
        path = tmp_path / f"{orientation}.image"
        path.write_bytes(written(mode, format, options, orientation))
        if mode == "F":
            with pytest.raises(InputError, match="holds floating-point values"):
                load_image(path)
            continue
        expected = turned(seen("I;16" if mode == "I" else mode), orientation)
        for image in (path, Image.open(path)):
            loaded = np.asarray(load_image(image)).astype(np.float64)
            assert loaded.shape == expected.shape, (orientation, image)
            assert np.abs(loaded - expected).max() <= tolerance(mode, format, options), orientation


def tolerance(mode: str, format: str, options: dict) -> float:
    if "quality" in options or "irreversible" in options:
        return 12
    return 1 if mode in ("LA", "RGBA", "CMYK", "I;16", "I") else 0
