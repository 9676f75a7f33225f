import socket

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from nerve_fast.errors import InputError
from nerve_fast.imaging.rasters import reading


@pytest.fixture
def rng(generator):
    return np.random.default_rng(generator.initial_seed())


def bands(rng, count=3, dtype=np.uint8, size=(70, 101), low=1):
    return rng.integers(low, np.iinfo(dtype).max, (count, *size), dtype=dtype)


def test_eight_bits_are_taken_as_they_are(rng, make_raster):
    values = bands(rng)
    with reading.opened(make_raster(values)) as raster:
        image, valid = raster.read((10, 20), (40, 50))
        assert raster.valid((0, 0), raster.size) is None
    assert (image == values[:, 10:50, 20:70].transpose(1, 2, 0)).all()
    assert valid.all()


def test_beyond_the_raster_its_edge_is_repeated(rng, make_raster):
    values = bands(rng)
    with reading.opened(make_raster(values)) as raster:
        image, valid = raster.read((60, 90), (20, 30))
    assert (image[10:, 11:] == values[:, -1, -1]).all()
    assert valid[:10, :11].all()
    assert valid.sum() == 110


def test_other_bands_are_stretched_between_percentiles(rng, make_raster):
    values = bands(rng, 4, np.uint16)
    path = make_raster(values)
    with reading.opened(path, bands=(4, 3, 2), percentiles=(5, 90)) as raster:
        image, _ = raster.read((0, 0), (70, 101))
    for number, band in enumerate(values[[3, 2, 1]].astype(float)):
        low, high = np.percentile(band, (5, 90))
        expected = np.clip(np.rint((band - low) / (high - low) * 255), 0, 255)
        assert (image[..., number] == expected).all()
    with reading.opened(path, bands=(4, 3, 2)) as raster:
        low, high = np.percentile(values[3], (2, 98))
        assert raster.stretches[0] == reading.Stretch(low, high)


def test_a_constant_band_is_dark(make_raster):
    with reading.opened(make_raster(np.full((1, 64, 64), 900, np.uint16))) as raster:
        assert not raster.read((0, 0), (64, 64))[0].any()


def test_a_scale_takes_means(rng, make_raster):
    values = bands(rng, size=(62, 63))
    with reading.opened(make_raster(values), scale=4) as raster:
        assert raster.seen == (16, 16)
        image, valid = raster.read((2, 3), (10, 13))
    # The sixteenth row and column are cut off: what is left of them is not stretched.
    blocks = values[:, 8:48, 12:60].reshape(3, 10, 4, 12, 4).mean((2, 4))
    assert np.abs(image[:, :12].transpose(2, 0, 1) - blocks).max() <= 0.5
    assert valid[:, :12].all()
    assert not valid[:, 12].any()


def test_no_data_of_any_band_is_none_and_looks_like_the_rest(rng, make_raster):
    values = bands(rng)
    values[1, 5:30, 7:40] = 0
    with reading.opened(make_raster(values, nodata=0)) as raster:
        image, valid = raster.read((0, 0), (70, 101))
        assert (raster.valid((3, 4), (20, 60)) == valid[3:23, 4:64]).all()
    assert (valid == (values[1] != 0)).all()
    mean = values[:, valid].mean(1)
    assert np.abs(image[~valid] - mean).max() <= 0.5


def test_floats_that_are_no_number_are_no_data(rng, make_raster):
    values = rng.random((3, 64, 64), dtype=np.float32)
    values[0, :10] = np.nan
    values[2, -5:] = np.inf
    with reading.opened(make_raster(values)) as raster:
        image, valid = raster.read((0, 0), (64, 64))
        assert (raster.valid((0, 0), (64, 64)) == valid).all()
        assert raster.stretches[0].high < 1
    assert (valid == np.isfinite(values).all(0)).all()
    assert image[valid].std() > 30


def test_alpha_and_masks_say_where_there_is_data(rng, make_raster):
    values = bands(rng, 4)
    values[3] = 255
    values[3, :20] = 0
    path = make_raster(values, photometric="rgb", alpha="yes")
    with reading.opened(path) as raster:
        assert raster.bands == (1, 2, 3)
        assert (raster.read((0, 0), (70, 101))[1] == (values[3] > 0)).all()
    path = make_raster(values[:3], "masked.tif")
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "r+") as dataset,
    ):
        dataset.write_mask(values[3])
    with reading.opened(path) as raster:
        assert (raster.valid((0, 0), (70, 101)) == (values[3] > 0)).all()


def test_bands_are_found_by_what_the_file_calls_them(rng, make_raster):
    path = make_raster(bands(rng, 4))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [
            *(ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined)
        ]
    with reading.opened(path) as raster:
        assert raster.bands == (3, 2, 1)
    for count, expected in ((2, (1,)), (1, (1,)), (5, (1, 2, 3))):
        with reading.opened(make_raster(bands(rng, count), f"{count}.tif")) as raster:
            assert raster.bands == expected
            assert raster.read((0, 0), (64, 64))[0].shape == (64, 64, 3)


def test_what_cannot_be_read_is_said_in_one_line(rng, make_raster, tmp_path):
    plain = bands(rng)
    whole = make_raster(plain).read_bytes()
    (tmp_path / "short.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.tif").write_text("no raster")
    (tmp_path / "empty.tif").touch()
    palette = make_raster(plain[:1], "palette.tif", photometric="palette")
    with rasterio.open(palette, "r+") as dataset:
        dataset.write_colormap(1, {0: (1, 2, 3, 255)})
    make_raster(plain, "nowhere.tif", crs=None)
    make_raster(plain, "flat.tif", transform=Affine.identity())
    make_raster(plain.astype(np.complex64), "complex.tif")
    make_raster(np.zeros((3, 64, 64), np.uint16), "none.tif", nodata=0)
    cases = {
        "short.tif": "short.tif: cannot be read",
        "text.tif": "no GeoTIFF that can be read",
        "empty.tif": "no GeoTIFF that can be read",
        "palette.tif": "band 1 holds the numbers of a palette's colours",
        "nowhere.tif": "has no coordinate reference system; name it in the file",
        "flat.tif": "does not say where its pixels lie",
        "complex.tif": "band 1 holds complex numbers",
        "none.tif": "hold no data",
        "absent.tif": "is not there",
        ".": "is a folder",
    }
    for name, said in cases.items():
        with (
            pytest.raises(InputError, match=said) as error,
            reading.opened(tmp_path / name) as raster,
        ):
            raster.read((0, 0), (70, 101))
        assert "\n" not in str(error.value)
    for given, said in (
        ({"bands": (4, 3, 2)}, "bands names band 4, and .*scene.tif has 3 bands"),
        ({"scale": 71}, "scale is 71"),
    ):
        with (
            pytest.raises(InputError, match=said),
            reading.opened(tmp_path / "scene.tif", **given),
        ):
            pass


@pytest.mark.parametrize("where", ["within", "beside"])
def test_nothing_is_fetched_for_a_raster(where, rng, make_raster):
    """GDAL looks for overviews where metadata say, which may be an address."""
    path = make_raster(bands(rng))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        there = f"/vsicurl/http://127.0.0.1:{server.getsockname()[1]}/x.tif"
        if where == "within":
            with rasterio.open(path, "r+") as dataset:
                dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=there)
        else:
            path.with_name("scene.tif.aux.xml").write_text(
                '<PAMDataset><Metadata domain="OVERVIEWS">'
                f'<MDI key="OVERVIEW_FILE">{there}</MDI></Metadata></PAMDataset>'
            )
        with rasterio.Env(GDAL_HTTP_TIMEOUT=1), reading.opened(path, scale=4) as raster:
            raster.read((0, 0), (16, 16))
        with pytest.raises(BlockingIOError):
            server.accept()


def test_other_formats_are_not_followed_to_other_files(make_raster, rng, tmp_path):
    """A VRT may name any file, and any address."""
    path = make_raster(bands(rng))
    rasterio.shutil.copy(path, tmp_path / "scene.vrt", driver="VRT")
    with pytest.raises(InputError, match="no GeoTIFF"), reading.opened(tmp_path / "scene.vrt"):
        pass
