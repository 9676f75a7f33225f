"""Label maps as GeoTIFF: tiled, compressed, with colours, names, coordinates and overviews."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from nerve_fast.imaging.rasters import SOFTWARE, need
from nerve_fast.imaging.rasters.gdal import environment, named_errors
from nerve_fast.imaging.rasters.reading import Raster
from nerve_fast.imaging.visualize import palette
from nerve_fast.utils.files import refuse_foreign
from nerve_fast.utils.text import plain

BLOCK = 256
"""Side of the file's tiles, in pixels."""

SMALLEST_OVERVIEW = 256
"""Longest side of the last overview, in pixels, at most."""


def no_label(count: int) -> int:
    """The value of pixels without data or without a label, where there are ``count`` labels."""
    return 255 if count <= 255 else 65_535


def refuse_foreign_raster(path: Path) -> None:
    """Raise where a raster would be overwritten that this package did not make.

    Raises:
        InputError: another file, or a symbolic link, is there.
    """
    need("rasterio")
    import rasterio
    import rasterio.errors

    if path.is_file() and not path.is_symlink():
        with (
            contextlib.suppress(rasterio.errors.RasterioError),
            environment(),
            rasterio.open(path, driver="GTiff") as dataset,
        ):
            if dataset.tags().get("TIFFTAG_SOFTWARE") == SOFTWARE:
                return
    # Of an empty file it says nothing, and of links, folders and others what they are.
    refuse_foreign(path, SOFTWARE.encode())


def refuse_foreign_names(path: Path) -> None:
    """The same for the class names of :func:`names_file`."""
    refuse_foreign(path, SOFTWARE.encode())


class LabelRaster:
    """A label map that is being written.

    Args:
        dataset: rasterio's, open for writing.
        path: that the file will have.
        nodata: the value of pixels without a label.
    """

    def __init__(self, dataset: Any, path: Path, nodata: int):
        self._dataset = dataset
        self._path = path
        self._nodata = nodata

    def write(self, corner: tuple[int, int], label_map: np.ndarray) -> None:
        """Write a block.

        Args:
            corner: ``(top, left)``.
            label_map: ``(h, w)`` integers, −1 where there is no label.

        Raises:
            InputError: it cannot be written.
        """
        from rasterio.windows import Window

        values = np.where(label_map < 0, self._nodata, label_map)
        window = Window(corner[1], corner[0], *reversed(label_map.shape))
        with _writing(self._path):
            self._dataset.write(values.astype(self._dataset.dtypes[0]), 1, window=window)


@contextlib.contextmanager
def label_raster(
    temporary: Path,
    path: Path,
    like: Raster,
    labels: Sequence[str],
    tags: Mapping[str, str],
) -> Iterator[LabelRaster]:
    """Write a label map on the grid of a raster; after the block come its overviews.

    Args:
        temporary: where it is written.
        path: the name that it will have, for messages.
        like: whose size, coordinates and transform it has.
        labels: ``K`` names; value ``i`` is label ``i``, and the largest one none.
        tags: written into the file, beside ``labels``, one a line, and the software.

    Raises:
        InputError: it cannot be written.
    """
    import rasterio

    nodata = no_label(len(labels))
    height, width = like.size
    colours = {number: (*map(int, rgb), 255) for number, rgb in enumerate(palette(len(labels)))}
    with _writing(path):
        dataset = rasterio.open(
            temporary,
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=1,
            dtype="uint8" if nodata == 255 else "uint16",
            crs=like.dataset.crs,
            transform=like.dataset.transform,
            nodata=nodata,
            tiled=True,
            blockxsize=BLOCK,
            blockysize=BLOCK,
            compress="deflate",
            bigtiff="if_safer",
        )
    try:
        with _writing(path):
            dataset.write_colormap(1, {**colours, nodata: (255, 255, 255, 0)})
            dataset.update_tags(TIFFTAG_SOFTWARE=SOFTWARE, **tags)
            dataset.update_tags(1, labels="\n".join(labels))
            dataset.set_band_description(1, "label")
        yield LabelRaster(dataset, path, nodata)
    finally:
        with _writing(path):
            dataset.close()
    with _writing(path):
        _add_overviews(temporary, max(like.size))
        _check_whole(temporary)


def _add_overviews(path: Path, longest: int) -> None:
    import rasterio
    from rasterio.enums import Resampling

    factors: list[int] = []
    while longest / 2 ** len(factors) > SMALLEST_OVERVIEW:
        factors.append(2 ** (len(factors) + 1))
    if factors:
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews(factors, Resampling.mode)


def _check_whole(path: Path) -> None:
    """Read the file: an error of GDAL while it closes a file, on a full disk, reaches nobody."""
    import rasterio

    with rasterio.open(path) as dataset:
        for _, window in dataset.block_windows(1):
            dataset.read(1, window=window)


def category_names(labels: Sequence[str]) -> str:
    """The content of ``NAME.tif.aux.xml``: class names where GDAL and QGIS look for them."""
    names = "\n".join(f"      <Category>{escape(plain(label))}</Category>" for label in labels)
    return (
        f'<PAMDataset>\n  <Metadata>\n    <MDI key="software">{SOFTWARE}</MDI>\n  </Metadata>\n'
        f'  <PAMRasterBand band="1">\n    <CategoryNames>\n{names}\n    </CategoryNames>\n'
        "  </PAMRasterBand>\n</PAMDataset>\n"
    )


def names_file(path: str | os.PathLike) -> Path:
    """Where the class names of a raster stand for GDAL."""
    path = Path(path)
    return path.with_name(path.name + ".aux.xml")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Around what writes: errors name the file, and nothing else tells of them.

    Where a disk is full, libtiff writes lines of its own to the standard error of the process.
    """
    with contextlib.ExitStack() as after, named_errors(path, "cannot be written"):
        with contextlib.suppress(OSError):  # It may be closed.
            kept = os.dup(2)
            after.callback(os.close, kept)
            after.callback(os.dup2, kept, 2)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        yield
