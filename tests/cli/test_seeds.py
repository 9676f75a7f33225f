"""Clicks, boxes and scribbles on the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from nerve_fast import InputError
from nerve_fast.cli import main as cli
from nerve_fast.cli.seeds import places
from nerve_fast.tiny.scenes import generate


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(2):
        generate(960_030 + number, (128, 128))[0].save(folder / f"photo{number}.png")
    return folder / "photo0.png"


def run(*arguments):
    given = ["segment", *arguments, "--models", "tiny", "--device", "cpu"]
    return cli.main([str(argument) for argument in given])


def labels_of(path):
    with Image.open(path) as image:
        return np.array(image), image.info["labels"].split("\n")


def test_places_of_labels():
    text = "cup: 300,180; coffee table: 60,60 560.5,60"
    assert places("--points", text, 2) == {
        "cup": [(300, 180)],
        "coffee table": [(60, 60), (560.5, 60)],
    }
    assert places("--boxes", "ratio 3:2: 1,2,3,4", 4) == {"ratio 3:2": [(1, 2, 3, 4)]}
    assert places("--points", "cup: 300, 180", 2) == {"cup": [(300, 180)]}
    assert places("--points", None, 2) is None


@pytest.mark.parametrize(
    "text", ["cup 3,4", "cup: 3", "cup: 3,4,5", ": 3,4", "cup: a,b", "cup:", "", ";", "cup: 3,4, 5"]
)
def test_bad_places_are_refused(text):
    with pytest.raises(InputError, match="--points"):
        places("--points", text, 2)
    with pytest.raises(InputError, match="names 'cup' twice"):
        places("--points", "cup: 1,2; cup: 3,4", 2)


def test_points_label_an_image(photo, tmp_path):
    out = tmp_path / "out"
    points = "cup: 10,12; table: 40,90 100,30"
    assert run(photo, "--points", points, "-o", out, "--save-steps") == 0
    found, names = labels_of(out / "photo0.labels.png")
    assert names == ["cup", "table"]
    assert found[12, 10] == 0
    assert found[90, 40] == found[30, 100] == 1
    # The same again is known; other points are not.
    before = (out / "photo0.labels.png").stat().st_mtime_ns
    assert run(photo, "--points", points, "-o", out, "--save-steps", "--resume") == 0
    assert (out / "photo0.labels.png").stat().st_mtime_ns == before
    moved = points.replace("10,12", "11,12")
    assert run(photo, "--points", moved, "-o", out, "--save-steps", "--resume") == 0
    assert (out / "photo0.labels.png").stat().st_mtime_ns != before


def test_a_file_has_the_points_of_many_images(photo, tmp_path):
    points = tmp_path / "points.json"
    content = {f"photo{n}.png": {"a": [[3 + n, 4]], "b": [[100, 100]]} for n in range(2)}
    points.write_text(json.dumps(content))
    assert run(photo.parent, "--points-file", points, "-o", tmp_path / "out") == 0
    for number in range(2):
        found, _ = labels_of(tmp_path / "out" / f"photo{number}.labels.png")
        assert found[4, 3 + number] == 0
        assert found[100, 100] == 1


def test_boxes_and_scribbles(photo, tmp_path):
    mask = np.zeros((128, 128), np.uint8)
    mask[5, 5:50], mask[120, 60:] = 1, 2
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out"
    flags = ["--scribbles", tmp_path / "mask.png", "--scribble-labels", "sky; floor"]
    assert run(photo, *flags, "--boxes", "thing: 60,60,70,72", "-o", out) == 0
    found, names = labels_of(out / "photo0.labels.png")
    assert names == ["thing", "sky", "floor"]
    assert (found[60:72, 60:70] == 0).all()
    assert (found[5, 5:50] == 1).all()
    assert (found[120, 60:] == 2).all()


def test_words_and_points_together(photo, tmp_path):
    out = tmp_path / "out"
    assert run(photo, "--labels", "grass; water", "--points", "mine: 9,9", "-o", out) == 0
    found, names = labels_of(out / "photo0.labels.png")
    assert names == ["grass", "water", "mine"]
    assert found[9, 9] == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "nothing says what to look for; pass --labels, or --points"),
        (("--points", "a: 1000,3"), "the point 1000,3 of 'a' lies outside of the image"),
        (("--points", "a: 1,1; b: 1,1"), "the seeds of 'a' and 'b' overlap in 1 pixels"),
        (("--points-file", "none.json"), "--points-file none.json: cannot be read as JSON"),
        (("--scribbles", "none.png"), "none.png: no such file"),
    ],
)
def test_bad_seeds_are_one_line(photo, tmp_path, capsys, flags, message):
    assert run(photo, *flags, "-o", tmp_path / "out") == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "nerve-fast:" in line]
    assert len(said) == 1
    assert message in said[0]
    assert not (tmp_path / "out" / "photo0.labels.png").exists()


def test_points_of_one_image_are_not_those_of_many(photo, tmp_path, capsys):
    assert run(photo.parent, "--points", "a: 1,1", "-o", tmp_path / "out") == 2
    assert "points are of one image, and there are 2" in capsys.readouterr().err


def test_an_odd_points_file_is_one_line(photo, tmp_path, capsys):
    points = tmp_path / "points.json"
    for content in ("[1]", '{"photo0.png": 3}', "{", '{"photo0.png": {"a": 3}}'):
        points.write_text(content)
        assert run(photo, "--points-file", points, "-o", tmp_path / "out") == 2
        assert "Traceback" not in capsys.readouterr().err
