import numpy as np
import pytest
import rasterio
import torch

from nerve_fast import NerveConfig
from nerve_fast.errors import InputError
from nerve_fast.pipeline.map_settings import MapSettings
from nerve_fast.pipeline.mapping import label_raster
from nerve_fast.tiny.scenes import generate

LABELS = ["grass", "snow", "ball", "box", "heart", "house", "tree"]
FAST = NerveConfig(normalization="shift")


def scene(height, width):
    return np.asarray(generate(1_200_003, (height, width))[0])


def asked(path, **given):
    folder = path.parent
    given = {"output": folder / "out.tif", "labels": LABELS, "config": FAST, **given}
    return MapSettings(raster=path, **given)


def labels_in(path):
    with rasterio.open(path) as dataset:
        found = dataset.read(1).astype(int)
        return np.where(found == dataset.nodata, -1, found)


def test_one_window_is_one_call(pipe, make_raster, tmp_path):
    picture = scene(72, 104)
    path = make_raster(picture.transpose(2, 0, 1))
    result = label_raster(asked(path), pipe)
    assert (result.size, len(result.tiling), result.empty) == ((72, 104), 1, 0)
    expected = pipe(picture, LABELS, config=FAST, processing_resolution=0)
    assert (labels_in(tmp_path / "out.tif") == expected.label_map.numpy()).all()


def test_windows_are_blended_and_nodata_stays(pipe, make_raster, tmp_path):
    """Beside a plane that is put together here, of the same windows; the pixels end in a window."""
    picture = scene(120, 68)
    values = picture.transpose(2, 0, 1).copy()
    values[:, :30, :20] = 0
    values[:, 100:104, 5:9] = 0
    path = make_raster(values, nodata=0)
    result = label_raster(
        asked(path, window=72, window_overlap=24, polygons=tmp_path / "out.gpkg"), pipe
    )
    assert (len(result.tiling), result.tiling.tile) == (2, (72, 72))
    found = labels_in(tmp_path / "out.tif")
    none = (values == 0).any(0)
    assert ((found == -1) == none).all()
    filled = picture.copy()
    padded = np.pad(filled, ((0, 0), (0, 4), (0, 0)), mode="edge")
    holes = np.pad(none, ((0, 0), (0, 4)))
    sums = torch.zeros(len(LABELS), 120 // 4, 72 // 4)
    for top in (0, 48):
        window, hole = padded[top : top + 72].copy(), holes[top : top + 72]
        beyond = np.arange(72) >= 68
        inside = window[:, ~beyond][~hole[:, ~beyond]]
        window[:, ~beyond][hole[:, ~beyond]] = 0
        window[hole] = np.rint(inside.mean(0)).astype(np.uint8)
        window[:, beyond] = window[:, [67]]
        maps = pipe(window, LABELS, config=FAST, processing_resolution=0).walked
        place = torch.arange(18) + 0.5
        fade = ((18 - place) if top == 0 else place) / 6
        sums[:, top // 4 : top // 4 + 18] += maps * fade.clamp(max=1)[:, None]
    expected = torch.nn.functional.interpolate(
        sums[None], (120, 72), mode="bilinear", align_corners=False
    )[0].argmax(0)[:, :68]
    assert (found == expected.numpy())[~none].mean() > 0.999


def test_a_scale_labels_the_rasters_own_pixels(pipe, make_raster, tmp_path):
    picture = scene(64, 96)
    path = make_raster(picture.repeat(3, 0).repeat(3, 1).transpose(2, 0, 1))
    label_raster(asked(path, scale=3), pipe)
    found = labels_in(tmp_path / "out.tif")
    assert found.shape == (192, 288)
    expected = pipe(picture, LABELS, config=FAST, processing_resolution=0)
    assert (found[1::3, 1::3] == expected.label_map.numpy()).mean() > 0.99


def test_windows_without_data_are_not_segmented(pipe, make_raster, tmp_path, monkeypatch):
    picture = scene(64, 240)
    values = picture.transpose(2, 0, 1).copy()
    values[:, :, :200] = 0
    path = make_raster(values, nodata=0)
    result = label_raster(asked(path, window=64, window_overlap=0), pipe)
    assert (len(result.tiling), result.empty) == (4, 3)
    found = labels_in(tmp_path / "out.tif")
    assert (found[:, :200] == -1).all()
    assert (found[:, 200:] >= 0).all()
    values[:] = 0
    with pytest.raises(InputError, match="holds no data"):
        label_raster(asked(make_raster(values, "none.tif", nodata=0), output="o.tif"), pipe)


def test_labels_thresholds_and_the_likeliest_few(pipe, make_raster, tmp_path):
    path = make_raster(scene(64, 112).transpose(2, 0, 1))
    windows = {"window": 64, "window_overlap": 16}
    label_raster(asked(path, **windows), pipe)
    plain = labels_in(tmp_path / "out.tif")
    label_raster(asked(path, threshold=0.5, **windows), pipe)
    sure = labels_in(tmp_path / "out.tif")
    assert (sure == -1).any()
    assert (sure == plain)[sure >= 0].all()
    label_raster(asked(path, threshold=0.5, background="grass", **windows), pipe)
    assert (labels_in(tmp_path / "out.tif") == np.where(sure < 0, 0, sure)).all()
    label_raster(asked(path, top=1, **windows), pipe)
    few = set(np.unique(labels_in(tmp_path / "out.tif")))
    assert few < set(range(len(LABELS)))
    assert len(few) <= 2


@pytest.mark.parametrize("polygons", [None, "out.gpkg", "out.geojson"])
def test_a_full_disk_leaves_nothing(polygons, pipe, make_raster, small_disk, tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 255, (3, 64, 64), dtype=np.uint8)
    path = make_raster(noise)
    before = set(tmp_path.iterdir())
    small_disk(60_000 if polygons == "out.gpkg" else 500)
    settings = asked(path, polygons=None if polygons is None else tmp_path / polygons)
    with pytest.raises(InputError, match="cannot be written") as error:
        label_raster(settings, pipe)
    assert "\n" not in str(error.value)
    assert set(tmp_path.iterdir()) == before
    assert capfd.readouterr() == ("", "")


def test_neither_input_nor_files_of_others_are_overwritten(pipe, make_raster, tmp_path):
    path = make_raster(scene(64, 64).transpose(2, 0, 1))
    before = path.read_bytes()
    with pytest.raises(InputError, match="raster and output are both"):
        label_raster(asked(path, output=path), pipe)
    theirs = make_raster(scene(64, 64).transpose(2, 0, 1), "theirs.tif")
    with pytest.raises(InputError, match="was not made by this command"):
        label_raster(asked(path, output=theirs), pipe)
    assert path.read_bytes() == before
    for _ in range(2):
        label_raster(asked(path, polygons=tmp_path / "out.geojson"), pipe)
