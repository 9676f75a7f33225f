"""The outlines of a label raster: GeoPackage or GeoJSON polygons in its coordinates."""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nerve_fast.errors import InputError
from nerve_fast.imaging.rasters import need
from nerve_fast.utils.files import refuse_foreign, shown

DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".json": "GeoJSON"}
"""GDAL's, by the ending of the name."""

LAYER = "nerve-fast labels"


def check_outlines(path: Path) -> None:
    """Refuse a place for polygons.

    Raises:
        InputError: the name has another ending, a file is there that was not made here, or a module
            is not installed.
    """
    need("pyogrio", "rasterio", "shapely")
    if path.suffix.lower() not in DRIVERS:
        raise InputError(
            f"{shown(path)}: {path.suffix or 'a name without an ending'} is of no format that "
            f"polygons are written in; expected {', '.join(DRIVERS)}"
        )
    if not _is_own_package(path):
        # GeoJSON has the name of the layer at its start.
        refuse_foreign(path, LAYER.encode())


def _is_own_package(path: Path) -> bool:
    """Whether a GeoPackage is there that has this package's layer alone."""
    if not path.is_file() or path.is_symlink():
        return False
    with contextlib.suppress(sqlite3.Error):
        address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as package:
            return package.execute("SELECT table_name FROM gpkg_contents").fetchall() == [(LAYER,)]
    return False


def write_outlines(raster: Path, temporary: Path, path: Path, labels: Sequence[str]) -> int:
    """Write the polygons of a label raster, along the edges of its pixels.

    A polygon is a connected part of one label, neighbours being those that share an edge; parts of
    the whole raster, whatever windows it was made in. What is in memory are the polygons, as GDAL
    goes through the raster line by line.

    Args:
        raster: of :func:`~nerve_fast.imaging.rasters.writing.label_raster`.
        temporary: where they are written.
        path: the name that the file will have; its ending says the format.
        labels: as of the raster.

    Returns:
        How many there are. Each has the fields ``label``, ``number`` and ``pixels``. GeoJSON is in
        the coordinates of the raster too, which a member ``crs`` names.

    Raises:
        InputError: they cannot be written.
    """
    import pyogrio
    import rasterio
    import shapely
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, GeometryError
    from rasterio.features import shapes

    geometries, numbers, pixels = [], [], []
    with rasterio.open(raster) as dataset:
        crs, nodata = dataset.crs.to_wkt(), dataset.nodata
        area = abs(dataset.transform.determinant)
        for shape, value in shapes(rasterio.band(dataset, 1), transform=dataset.transform):
            if value != nodata:
                polygon = shapely.geometry.shape(shape)
                geometries.append(shapely.to_wkb(polygon))
                numbers.append(int(value))
                pixels.append(round(polygon.area / area))
    try:
        pyogrio.raw.write(
            temporary,
            np.array(geometries, dtype=object),
            [
                np.array([labels[number] for number in numbers], dtype=object),
                np.array(numbers, dtype=np.int32),
                np.array(pixels, dtype=np.int64),
            ],
            ["label", "number", "pixels"],
            layer=LAYER,
            driver=DRIVERS[path.suffix.lower()],
            geometry_type="Polygon",
            crs=crs,
        )
        # A disk that is full when the file is closed raises nothing.
        if pyogrio.read_info(temporary, force_feature_count=True)["features"] != len(numbers):
            raise DataSourceError("it was cut off, as on a full disk")
    except (DataLayerError, DataSourceError, FeatureError, GeometryError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{shown(path)}: cannot be written: {said}") from error
    return len(geometries)
