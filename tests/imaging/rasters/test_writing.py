import xml.etree.ElementTree as ET

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.transform import Affine

from nerve_fast.errors import InputError
from nerve_fast.imaging.rasters import outlines, reading, writing
from nerve_fast.imaging.visualize import palette


def write(source, path, label_map, labels):
    with reading.opened(source) as raster:
        with writing.label_raster(path, path, raster, labels, {"source": "x"}) as labelled:
            for top in range(0, len(label_map), 100):
                labelled.write((top, 0), label_map[top : top + 100])
        writing.names_file(path).write_text(writing.category_names(labels), encoding="utf-8")


@pytest.fixture
def label_map(generator):
    rng = np.random.default_rng(generator.initial_seed())
    found = rng.integers(-1, 3, (6, 7)).repeat(50, 0).repeat(50, 1)
    found[rng.random(found.shape) < 0.01] = -1
    return found


@pytest.mark.parametrize("turned", [0, 30])
def test_labels_come_back_with_their_place_colours_and_names(
    turned, label_map, make_raster, tmp_path
):
    place = Affine.translation(500_000, 5_400_000) * Affine.rotation(turned) * Affine.scale(2, -3)
    source = make_raster(np.ones((3, *label_map.shape), np.uint8), transform=place)
    labels = ["grass", "water, <sea> & lake", "Straße"]
    write(source, tmp_path / "out.tif", label_map, labels)
    with rasterio.open(tmp_path / "out.tif") as made:
        found = made.read(1).astype(int)
        assert (np.where(found == 255, -1, found) == label_map).all()
        assert (made.crs, made.transform) == (rasterio.CRS.from_epsg(32632), place)
        assert (made.nodata, made.dtypes, made.compression.value) == (255, ("uint8",), "DEFLATE")
        assert made.is_tiled
        assert made.overviews(1) == [2]
        colours = made.colormap(1)
        assert [colours[i][:3] for i in range(3)] == list(map(tuple, palette(3).tolist()))
        assert made.tags(1)["labels"] == "\n".join(labels)
        rasterio.shutil.copy(made, tmp_path / "as-gdal-sees-it.vrt", driver="VRT")
    names = ET.parse(tmp_path / "as-gdal-sees-it.vrt").findall(".//Category")
    assert [name.text for name in names] == labels


def test_many_labels_have_16_bits(make_raster, tmp_path):
    labels = [f"class {i}" for i in range(300)]
    found = (np.arange(64 * 64).reshape(64, 64) % 301) - 1
    write(make_raster(np.ones((1, 64, 64), np.uint8)), tmp_path / "out.tif", found, labels)
    with rasterio.open(tmp_path / "out.tif") as made:
        assert (made.dtypes[0], made.nodata) == ("uint16", 65_535)
        assert (np.where(made.read(1) == 65_535, -1, made.read(1).astype(int)) == found).all()
        assert made.colormap(1)[299][:3] == tuple(palette(300)[299].tolist())


def test_a_full_disk_is_said(label_map, make_raster, small_disk, tmp_path, capfd):
    source = make_raster(np.ones((3, *label_map.shape), np.uint8))
    noise = np.random.default_rng(0).integers(0, 3, label_map.shape)
    small_disk(20_000)
    with pytest.raises(InputError, match=r"out.tif: cannot be written"):
        write(source, tmp_path / "out.tif", noise, ["a", "b", "c"])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["out.gpkg", "out.geojson"])
def test_polygons_on_a_full_disk_are_said(
    name, label_map, make_raster, small_disk, tmp_path, capfd
):
    source = make_raster(np.ones((3, *label_map.shape), np.uint8))
    write(source, tmp_path / "out.tif", label_map, ["a", "b", "c"])
    small_disk(50_000)
    path = tmp_path / name
    with pytest.raises(InputError, match=f"{name}: cannot be written"):
        outlines.write_outlines(tmp_path / "out.tif", path, path, ["a", "b", "c"])
    assert capfd.readouterr() == ("", "")


METRES = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
DEGREES = Affine(1e-6 / 3, 0, 11.123456789, 0, -1e-6 / 7, 48.123456789)


@pytest.mark.parametrize("name", ["out.gpkg", "out.geojson"])
@pytest.mark.parametrize(("code", "place"), [(32632, METRES), (4326, DEGREES)])
def test_polygons_cover_the_labels(name, code, place, label_map, make_raster, tmp_path):
    import pyogrio
    import shapely
    from rasterio.features import rasterize

    labels = ["grass", "water", "Straße"]
    source = make_raster(
        np.ones((3, *label_map.shape), np.uint8), crs=f"EPSG:{code}", transform=place
    )
    write(source, tmp_path / "out.tif", label_map, labels)
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


def test_files_of_others_are_left_alone(make_raster, tmp_path):
    foreign = make_raster(np.ones((3, 64, 64), np.uint8))
    with pytest.raises(InputError, match="was not made by this command"):
        writing.refuse_foreign_raster(foreign)
    for name in ("theirs.gpkg", "theirs.geojson"):
        (tmp_path / name).write_text("theirs")
        with pytest.raises(InputError, match="was not made by this command"):
            outlines.check_outlines(tmp_path / name)
    write(foreign, tmp_path / "ours.tif", np.zeros((64, 64), int), ["a"])
    writing.refuse_foreign_raster(tmp_path / "ours.tif")
    writing.refuse_foreign_names(tmp_path / "ours.tif.aux.xml")
    writing.refuse_foreign_raster(tmp_path / "new.tif")
    outlines.check_outlines(tmp_path / "new.gpkg")
    with pytest.raises(InputError, match=r"expected \.gpkg, \.geojson"):
        outlines.check_outlines(tmp_path / "new.shp")
