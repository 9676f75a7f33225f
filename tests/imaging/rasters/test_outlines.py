import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rasterio.features import rasterize
from rasterio.transform import Affine

from nerve_fast.errors import InputError
from nerve_fast.imaging.rasters import outlines


@pytest.mark.parametrize("name", ["out.gpkg", "out.geojson"])
def test_polygons_on_a_full_disk_are_said(
    name, label_map, write_labels, make_raster, small_disk, tmp_path, capfd
):
    source = make_raster(np.ones((3, *label_map.shape), np.uint8))
    write_labels(source, tmp_path / "out.tif", label_map, ["a", "b", "c"])
    small_disk(50_000)
    path = tmp_path / name
    with pytest.raises(InputError, match=f"{name}: cannot be written"):
        outlines.write_outlines(tmp_path / "out.tif", path, path, ["a", "b", "c"])
    assert capfd.readouterr() == ("", "")


METRES = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
DEGREES = Affine(1e-6 / 3, 0, 11.123456789, 0, -1e-6 / 7, 48.123456789)


@pytest.mark.parametrize("name", ["out.gpkg", "out.geojson"])
@pytest.mark.parametrize(("code", "place"), [(32632, METRES), (4326, DEGREES)])
def test_polygons_cover_the_labels(
    name, code, place, label_map, write_labels, make_raster, tmp_path
):
    labels = ["grass", "water", "Straße"]
    source = make_raster(
        np.ones((3, *label_map.shape), np.uint8), crs=f"EPSG:{code}", transform=place
    )
    write_labels(source, tmp_path / "out.tif", label_map, labels)
    path = tmp_path / name
    count = outlines.write_outlines(tmp_path / "out.tif", path, path, labels)
    meta, _, geometries, (label, number, pixels) = pyogrio.raw.read(path)
    assert len(geometries) == count > 3
    assert rasterio.CRS.from_string(meta["crs"]) == rasterio.CRS.from_epsg(code)
    assert [labels[one] for one in number] == list(label)
    polygons = list(map(shapely.from_wkb, geometries))
    assert all(polygon.is_valid for polygon in polygons)
    with rasterio.open(tmp_path / "out.tif") as made:
        back = rasterize(
            zip(polygons, number, strict=True),
            out_shape=made.shape,
            transform=made.transform,
            fill=255,
            dtype="uint8",
        )
        assert (back == made.read(1)).all()
    for value in range(3):
        assert pixels[number == value].sum() == (label_map == value).sum()
    # It may be written again, but not over what others made.
    outlines.check_outlines(path)


def test_files_of_others_are_left_alone(tmp_path):
    for name in ("theirs.gpkg", "theirs.geojson"):
        (tmp_path / name).write_text("theirs")
        with pytest.raises(InputError, match="was not made by this command"):
            outlines.check_outlines(tmp_path / name)
    outlines.check_outlines(tmp_path / "new.gpkg")
    with pytest.raises(InputError, match=r"expected \.gpkg, \.geojson"):
        outlines.check_outlines(tmp_path / "new.shp")
