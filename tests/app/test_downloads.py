import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from nerve_fast.app import downloads
from nerve_fast.app.result import Asked
from nerve_fast.errors import InputError
from nerve_fast.imaging.exports import EXPORTS


@pytest.fixture
def result(opened, scene):
    opened.name = "my scene (1).png"
    return opened.segment(Asked("; ".join(scene[2])))


def test_every_format_is_one_file(result, tmp_path):
    formats = downloads.formats()
    assert {*EXPORTS, *downloads.OWN, downloads.ALL} == set(formats)
    for name in formats:
        (tmp_path / name).mkdir()
        path = downloads.write(result, name, tmp_path / name)
        assert path.is_file()
        assert path.parent == tmp_path / name


def test_files_hold_the_result(result, tmp_path):
    labels = result.out.label_map.numpy()
    path = downloads.write(result, "png", tmp_path)
    assert path.name == "my_scene__1_.labels.png"
    assert (np.asarray(Image.open(path)) == labels).all()
    with zipfile.ZipFile(downloads.write(result, "all", _new(tmp_path, "all"))) as archive:
        names = archive.namelist()
        coco = json.loads(archive.read("coco.json"))
        archive.extract("my_scene__1_.npz", tmp_path)
    assert {"areas.csv", "my_scene__1_.polygons.json", "voc/labelmap.txt"} <= set(names)
    assert coco["images"][0]["file_name"] == "my scene (1).png"
    assert sum(one["area"] for one in coco["annotations"]) == labels.size
    with np.load(tmp_path / "my_scene__1_.npz") as arrays:
        assert (arrays["label_map"] == labels).all()
    with zipfile.ZipFile(downloads.write(result, "masks", _new(tmp_path, "masks"))) as archive:
        assert len(archive.namelist()) == len(np.unique(labels))


def test_what_there_is_not_is_refused(result, tmp_path):
    with pytest.raises(InputError, match="expected one of png"):
        downloads.write(result, "../../etc", tmp_path)


def test_labels_that_a_format_cannot_hold_are_refused(opened, tmp_path):
    result = opened.segment(Asked("a:b; c"))
    with pytest.raises(InputError, match="labelmap"):
        downloads.write(result, "voc", tmp_path)


def _new(folder, name):
    (folder / name).mkdir()
    return folder / name
