import xml.etree.ElementTree as ET

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.transform import Affine

from nerve_fast.errors import InputError
from nerve_fast.imaging.rasters import writing
from nerve_fast.imaging.visualize import palette


@pytest.mark.parametrize("turned", [0, 30])
def test_labels_come_back_with_their_place_colours_and_names(
    turned, label_map, write_labels, make_raster, tmp_path
):
    place = Affine.translation(500_000, 5_400_000) * Affine.rotation(turned) * Affine.scale(2, -3)
    source = make_raster(np.ones((3, *label_map.shape), np.uint8), transform=place)
    labels = ["grass", "water, <sea> & lake", "Straße"]
    write_labels(source, tmp_path / "out.tif", label_map, labels)
    with rasterio.open(tmp_path / "out.tif") as made:
        found = made.read(1).astype(int)
        assert (np.where(found == 255, -1, found) == label_map).all()
        assert (made.crs, made.transform) == (rasterio.CRS.from_epsg(32632), place)
        assert (made.nodata, made.dtypes, made.compression.value) == (255, ("uint8",), "DEFLATE")
        assert made.block_shapes == [(256, 256)]
        assert made.overviews(1) == [2]
        colours = made.colormap(1)
        assert [colours[i][:3] for i in range(3)] == list(map(tuple, palette(3).tolist()))
        assert made.tags(1)["labels"] == "\n".join(labels)
        rasterio.shutil.copy(made, tmp_path / "as-gdal-sees-it.vrt", driver="VRT")
    names = ET.parse(tmp_path / "as-gdal-sees-it.vrt").findall(".//Category")
    assert [name.text for name in names] == labels


def test_many_labels_have_16_bits(write_labels, make_raster, tmp_path):
    labels = [f"class {i}" for i in range(300)]
    found = (np.arange(64 * 64).reshape(64, 64) % 301) - 1
    write_labels(make_raster(np.ones((1, 64, 64), np.uint8)), tmp_path / "out.tif", found, labels)
    with rasterio.open(tmp_path / "out.tif") as made:
        assert (made.dtypes[0], made.nodata) == ("uint16", 65_535)
        assert (np.where(made.read(1) == 65_535, -1, made.read(1).astype(int)) == found).all()
        assert made.colormap(1)[299][:3] == tuple(palette(300)[299].tolist())


def test_a_full_disk_is_said(label_map, write_labels, make_raster, small_disk, tmp_path, capfd):
    source = make_raster(np.ones((3, *label_map.shape), np.uint8))
    noise = np.random.default_rng(0).integers(0, 3, label_map.shape)
    small_disk(20_000)
    with pytest.raises(InputError, match=r"out.tif: cannot be written"):
        write_labels(source, tmp_path / "out.tif", noise, ["a", "b", "c"])
    assert capfd.readouterr() == ("", "")


def test_files_of_others_are_left_alone(write_labels, make_raster, tmp_path):
    foreign = make_raster(np.ones((3, 64, 64), np.uint8))
    with pytest.raises(InputError, match="was not made by this command"):
        writing.refuse_foreign_raster(foreign)
    write_labels(foreign, tmp_path / "ours.tif", np.zeros((64, 64), int), ["a"])
    writing.refuse_foreign_raster(tmp_path / "ours.tif")
    writing.refuse_foreign_names(tmp_path / "ours.tif.aux.xml")
    writing.refuse_foreign_raster(tmp_path / "new.tif")
