"""A GeoTIFF read by windows: three bands as 8-bit RGB, and where there is data."""

import contextlib
import dataclasses
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nerve_fast.errors import InputError, SettingError, quoted
from nerve_fast.imaging.rasters import need
from nerve_fast.imaging.rasters.gdal import environment, named_errors
from nerve_fast.utils.files import shown

SAMPLE_SIDE = 1024
"""Rows and columns, at most, that percentiles are computed from."""

PERCENTILES = (2.0, 98.0)
"""Of bands that have other than 8 bits, where none are named."""


@dataclasses.dataclass(frozen=True)
class Stretch:
    """How the values of a band become 8 bits.

    Attributes:
        low, high: values that become 0 and 255; those beyond them are clipped.
    """

    low: float
    high: float

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Values of any real dtype as uint8; NaN becomes 0."""
        # A constant band has no contrast to stretch: it is dark.
        span = self.high - self.low or 1.0
        with np.errstate(invalid="ignore", over="ignore"):
            part = (values.astype(np.float64) - self.low) * (255 / span)
        return np.nan_to_num(np.clip(np.rint(part), 0, 255)).astype(np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class Raster:
    """A raster that is open; made by :func:`opened`.

    Attributes:
        path: of the file.
        dataset: rasterio's.
        bands: their numbers, from 1: three, or one that is shown as grey.
        scale: pixels along each side that are read as one.
        stretches: of the bands; ``None`` where the values are taken as they are.
    """

    path: Path
    dataset: Any
    bands: tuple[int, ...]
    scale: int
    stretches: tuple[Stretch, ...] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` in the raster's own pixels."""
        return self.dataset.height, self.dataset.width

    @property
    def seen(self) -> tuple[int, int]:
        """``(height, width)`` at the scale; pixels of the last row and column may be cut off."""
        height, width = self.size
        return math.ceil(height / self.scale), math.ceil(width / self.scale)

    def read(self, corner: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """A window at the scale: the mean of what becomes one pixel, from overviews if there are.

        Args:
            corner: ``(top, left)`` in pixels of the scale.
            size: ``(height, width)``; what lies beyond the raster repeats its last row and column.

        Returns:
            ``(height, width, 3)`` uint8, whose pixels without data have the mean of the others, and
            ``(height, width)`` bool: where there is data.

        Raises:
            InputError: the file is damaged.
        """
        from rasterio.enums import Resampling

        # Whole pixels of the scale alone, as others would stretch all of a window.
        ends = [length // self.scale for length in self.size]
        inside = [
            min(end - start, side) for end, start, side in zip(ends, corner, size, strict=True)
        ]
        way = Resampling.average if self.scale > 1 else Resampling.nearest
        values = self._values(corner, inside, way)
        valid = self._valid(values, corner, inside)
        shown_as = [
            band if self.stretches is None else self.stretches[number].apply(band)
            for number, band in enumerate(values)
        ]
        image = np.stack(shown_as * (3 // len(shown_as)), axis=-1)
        if valid.any() and not valid.all():
            image[~valid] = np.rint(image[valid].mean(axis=0)).astype(np.uint8)
        beyond = [(0, side - got) for side, got in zip(size, inside, strict=True)]
        return np.pad(image, (*beyond, (0, 0)), mode="edge"), np.pad(valid, beyond)

    def valid(self, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray | None:
        """Where all bands have data, at the raster's own pixels; ``None`` is everywhere.

        Args:
            corner: ``(top, left)``.
            size: ``(height, width)``, within the raster.

        Returns:
            ``(height, width)`` bool.

        Raises:
            InputError: the file is damaged.
        """
        from rasterio.enums import MaskFlags, Resampling

        flags = [self.dataset.mask_flag_enums[band - 1] for band in self.bands]
        floating = any(np.dtype(self._dtype(band)).kind == "f" for band in self.bands)
        if not floating and all(MaskFlags.all_valid in one for one in flags):
            return None
        whole = dataclasses.replace(self, scale=1)
        values = whole._values(corner, size, Resampling.nearest) if floating else None
        return whole._valid(values, corner, size)

    def sampled(self) -> tuple[np.ndarray, np.ndarray]:
        """All of the raster, of which at most :data:`SAMPLE_SIDE` rows and columns are read.

        Returns:
            ``(bands, height, width)`` values and ``(height, width)`` bool: where there is data.
        """
        shape = tuple(min(side, SAMPLE_SIDE) for side in self.size)
        bands = list(self.bands)
        with named_errors(self.path):
            values = self.dataset.read(bands, out_shape=(len(bands), *shape))
            masks = self.dataset.read_masks(bands, out_shape=(len(bands), *shape))
        return values, _both(values, masks)

    def _values(self, corner, size, way) -> np.ndarray:
        with named_errors(self.path):
            return self.dataset.read(
                list(self.bands),
                window=self._window(corner, size),
                out_shape=(len(self.bands), *size),
                resampling=way,
            )

    def _valid(self, values: np.ndarray | None, corner, size) -> np.ndarray:
        with named_errors(self.path):
            masks = self.dataset.read_masks(
                list(self.bands),
                window=self._window(corner, size),
                out_shape=(len(self.bands), *size),
            )
        return _both(values, masks)

    def _window(self, corner, size):
        from rasterio.windows import Window

        (top, left), (height, width), scale = corner, size, self.scale
        return Window(left * scale, top * scale, width * scale, height * scale)

    def _dtype(self, band: int) -> str:
        return self.dataset.dtypes[band - 1]


def _both(values: np.ndarray | None, masks: np.ndarray) -> np.ndarray:
    """Where every band has data and, given values, a finite one."""
    valid = (masks != 0).all(axis=0)
    if values is not None and values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    return valid


@contextlib.contextmanager
def opened(
    path: str | os.PathLike,
    *,
    bands: Sequence[int] | None = None,
    percentiles: tuple[float, float] | None = None,
    scale: int = 1,
) -> Iterator[Raster]:
    """Open a GeoTIFF for reading by windows.

    Args:
        path: a file of this machine.
        bands: one or three numbers, from 1; ``None`` takes those that the file says are red, green
            and blue, else the first three, else the first one.
        percentiles: values of each band that become black and white, from a sample of at most
            1024 × 1024 pixels; ``None`` takes bands of 8 bits as they are, and 2 and 98 of others.
        scale: pixels along each side that are read as one.

    Raises:
        InputError: the file is no GeoTIFF, has no coordinates, no such bands, or bands of complex
            numbers or of a palette; or it holds no data.
        SettingError: the scale leaves no pixel.
    """
    need("rasterio")
    import rasterio
    import rasterio.errors

    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{shown(path)}: {'is a folder' if path.is_dir() else 'is not there'}; "
            "expected a GeoTIFF"
        )
    with environment(), contextlib.ExitStack() as stack:
        with named_errors(path, "is no GeoTIFF that can be read"), warnings.catch_warnings():
            # Refused below, in one line.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            # Other formats may lead to other files, and into the network.
            dataset = stack.enter_context(rasterio.open(path, driver="GTiff"))
        _check_place(path, dataset)
        chosen = _chosen(path, dataset, bands)
        if min(dataset.shape) < scale:
            raise SettingError(
                "{scale} is {0}, and {1} has {2} × {3} pixels; expected at most its shorter side",
                scale,
                shown(path),
                dataset.width,
                dataset.height,
            )
        raster = Raster(path, dataset, chosen, scale)
        eight = all(dataset.dtypes[band - 1] == "uint8" for band in chosen)
        if percentiles is not None or not eight:
            stretches = _stretches(raster, percentiles or PERCENTILES)
            raster = dataclasses.replace(raster, stretches=stretches)
        yield raster


def _check_place(path: Path, dataset) -> None:
    if dataset.crs is None:
        raise InputError(
            f"{shown(path)}: has no coordinate reference system; name it in the file, as "
            f"`rio edit-info --crs EPSG:32632 {shown(path.name)}` does"
        )
    if dataset.transform.is_identity or dataset.transform.determinant == 0:
        raise InputError(
            f"{shown(path)}: does not say where its pixels lie, as it has no geotransform (ground "
            "control points are not taken); warp it first"
        )


def _chosen(path: Path, dataset, bands: Sequence[int] | None) -> tuple[int, ...]:
    from rasterio.enums import ColorInterp

    if bands is None:
        means = list(dataset.colorinterp)
        named = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        plain = [band for band in dataset.indexes if means[band - 1] != ColorInterp.alpha]
        if all(colour in means for colour in named):
            bands = [means.index(colour) + 1 for colour in named]
        else:
            bands = plain[: 3 if len(plain) >= 3 else 1]
    for band in bands:
        if band not in dataset.indexes:
            raise SettingError(
                "{bands} names band {0}, and {1} has {2}; they are counted from 1",
                band,
                shown(path),
                f"{dataset.count} bands" if dataset.count > 1 else "one band",
            )
        if dataset.dtypes[band - 1].startswith("complex"):
            raise InputError(
                f"{shown(path)}: band {band} holds complex numbers ({dataset.dtypes[band - 1]}); "
                "expected real ones, such as their amplitude"
            )
        if dataset.colorinterp[band - 1] == ColorInterp.palette:
            raise InputError(
                f"{shown(path)}: band {band} holds the numbers of a palette's colours; expected "
                "brightness, as `gdal_translate -expand rgb` makes of it"
            )
    return tuple(bands)


def _stretches(raster: Raster, percentiles: tuple[float, float]) -> tuple[Stretch, ...]:
    values, valid = raster.sampled()
    if not valid.any():
        raise InputError(f"{shown(raster.path)}: bands {quoted(raster.bands)} hold no data")
    return tuple(
        Stretch(*map(float, np.percentile(band[valid].astype(np.float64), percentiles)))
        for band in values
    )
