"""A large georeferenced raster of invented scenes, written by blocks."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.windows import Window

from nerve_fast.tiny.scenes import generate

SEED = 1_210_000
"""Of the scenes: none of them was trained or tuned on."""

NODATA = 0

FACTOR, OFFSET = 12, 400
"""What 8 bits become in 16."""


def make(path: Path, side: int, magnified: int, *, scene: int = 1000) -> None:
    """Write ``side × side`` pixels of four bands of 16 bits: blue, green, red, near infrared.

    Scenes of ``scene`` pixels stand side by side, each pixel ``magnified`` times as wide and high.
    Beyond a slanting line, as at the edge of a satellite's swath, there is no data.
    """
    width = scene * magnified
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=side,
        width=side,
        count=4,
        dtype="uint16",
        crs="EPSG:32632",
        transform=from_origin(500_000, 5_400_000, 0.5, 0.5),
        nodata=NODATA,
        tiled=True,
        blockxsize=512,
        blockysize=512,
        compress="deflate",
        bigtiff="if_safer",
    ) as dataset:
        dataset.descriptions = ("blue", "green", "red", "near infrared")
        number = 0
        for top in range(0, side, width):
            for left in range(0, side, width):
                picture = np.asarray(generate(SEED + number, scene)[0])
                number += 1
                _write(dataset, picture, magnified, top, left)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4, 8, 16, 32], Resampling.average)


def _write(dataset, picture: np.ndarray, magnified: int, top: int, left: int) -> None:
    rows = 512 // magnified
    for start in range(0, len(picture), rows):
        strip = picture[start : start + rows].repeat(magnified, axis=0).repeat(magnified, axis=1)
        first = top + start * magnified
        height = min(len(strip), dataset.height - first)
        width = min(strip.shape[1], dataset.width - left)
        if height <= 0:
            break
        red, green, blue = (
            strip[:height, :width].transpose(2, 0, 1).astype(np.uint16) * FACTOR + OFFSET
        )
        bands = np.stack([blue, green, red, green + 100])
        y, x = np.mgrid[first : first + height, left : left + width]
        bands[:, x + y // 4 < dataset.width // 8] = NODATA
        dataset.write(bands, window=Window(left, first, width, height))
