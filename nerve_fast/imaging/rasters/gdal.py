"""GDAL's settings, and its errors as this package's."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nerve_fast.errors import InputError
from nerve_fast.utils.files import shown

CACHE_BYTES = 64 << 20
"""Blocks that GDAL keeps, of what is read and of what is written."""


def environment():
    """GDAL's settings around what opens a raster, as a context."""
    import rasterio

    return rasterio.Env(
        GDAL_CACHEMAX=CACHE_BYTES,
        # Metadata may say that a raster's overviews lie at an address of the network: this is the
        # only file that may be fetched.
        CPL_VSIL_CURL_ALLOWED_FILENAME="none",
    )


@contextlib.contextmanager
def named_errors(path: Path, what: str = "cannot be read") -> Iterator[None]:
    """Turn errors of rasterio and GDAL into an :class:`InputError` that names the file.

    Args:
        path: that the message names.
        what: is wrong with it.
    """
    # GDAL's own have no public name.
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        # rasterio leaves what GDAL said to the cause of some errors.
        said = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise InputError(f"{shown(path)}: {what}: {said}") from error
