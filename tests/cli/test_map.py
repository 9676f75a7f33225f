import sys

import numpy as np
import pytest
import rasterio

from nerve_fast.cli import main as cli
from nerve_fast.tiny.scenes import generate

LABELS = "grass; snow; ball; box; heart; house; tree"
FLAGS = ("--models", "tiny", "--device", "cpu", "--normalization", "shift")


@pytest.fixture
def satellite(make_raster):
    """Blue, green, red and near infrared in 16 bits, with a corner without data."""
    red, green, blue = np.asarray(generate(1_200_003, (64, 112))[0]).transpose(2, 0, 1)
    values = np.stack([blue, green, red, green]).astype(np.uint16) * 12 + 400
    values[:, :20, :30] = 0
    return make_raster(values, nodata=0)


def run(*words):
    return cli.main([str(word) for word in ("map", *words)])


def test_a_map_and_its_polygons(satellite, tmp_path, capsys):
    import pyogrio

    output, polygons = tmp_path / "new" / "labels.tif", tmp_path / "new" / "labels.gpkg"
    windows = ("--window", 64, "--window-overlap", 16, "--percentiles", "1,99")
    places = ("-o", output, "--polygons", polygons)
    assert run(satellite, "--labels", LABELS, "--bands", "3,2,1", *windows, *places, *FLAGS) == 0
    said = capsys.readouterr()
    count = pyogrio.read_info(polygons)["features"]
    assert said.out == (
        f"{output}: 112 × 64 pixels, in 2 windows of 64 × 64; {polygons}: {count} polygons\n"
    )
    with rasterio.open(output) as made, rasterio.open(satellite) as given:
        assert (made.crs, made.transform) == (given.crs, given.transform)
        assert ((made.read(1) == 255) == (given.read(1) == 0)).all()
        assert made.tags(1)["labels"].split("\n") == LABELS.split("; ")
        assert made.tags()["bands"] == "3,2,1"
    assert sorted(path.name for path in output.parent.iterdir()) == [
        *("labels.gpkg", "labels.tif", "labels.tif.aux.xml")
    ]


def test_clusters_of_keys_are_summed_up(satellite, tmp_path, capsys):
    windows = ("--window", 64, "--window-overlap", 16, "--global-keys", 64)
    assert run(satellite, "--labels", LABELS, *windows, "-o", tmp_path / "o.tif", *FLAGS) == 0
    said = capsys.readouterr()
    assert "keys of" not in said.err
    assert "the window that is farthest off: the first step within" in said.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--labels", LABELS, "--bands", "5,3,2"), "--bands names band 5, and"),
        (("--labels", LABELS, "--bands", "1,2"), "--bands is [1, 2]; expected three bands"),
        (("--labels", LABELS, "--percentiles", "9,2"), "--percentiles is [9.0, 2.0]"),
        (("--labels", LABELS, "--scale", "100"), "--scale is 100, and"),
        (("--labels", LABELS, "--window", "8"), "--window is 8; expected 16 or more"),
        (
            ("--labels", LABELS, "--max-memory", "9MB"),
            "9 MB of memory beyond the models do not hold windows of",
        ),
        (("--labels", LABELS, "--polygons", "x.shp"), "expected .gpkg, .geojson"),
        (("--labels", LABELS, "--polygons", "/proc/x.gpkg"), "/proc cannot be written"),
        ((), "pass --labels"),
    ],
)
def test_a_mistake_is_said_in_one_line_and_leaves_nothing(
    words, said, satellite, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert run(satellite, "-o", "o.tif", *words, *FLAGS) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert set(tmp_path.iterdir()) == before


def test_a_damaged_raster_leaves_nothing(make_raster, tmp_path, capfd):
    path = make_raster(np.random.default_rng(0).integers(1, 9, (3, 128, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-4_000])
    windows = ("--window", 64, "--window-overlap", 0)
    assert run(path, "--labels", LABELS, *windows, "-o", tmp_path / "o.tif", *FLAGS) == 2
    said = capfd.readouterr().err
    assert "scene.tif: cannot be read" in said
    assert list(tmp_path.iterdir()) == [path]


def test_without_the_extra_it_is_named(satellite, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert run(satellite, "--labels", LABELS, "-o", tmp_path / "o.tif", *FLAGS) == 2
    assert 'pip install "nerve-fast[geo]"' in capsys.readouterr().err
