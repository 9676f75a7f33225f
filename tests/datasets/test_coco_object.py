import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from nerve_fast import InputError
from nerve_fast.datasets import load
from nerve_fast.datasets.coco_object import convert
from nerve_fast.datasets.vocabulary import classes_of

# pycocotools is behind numpy's latest deprecation.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# Ids with gaps, in another order than the labels', as nothing forbids.
IDS = {name: 3 * label + 1 for label, name in enumerate(classes_of("coco-object")[1:])}
PERSON, BICYCLE, DOG, TOOTHBRUSH = 1, 2, 17, 80


def box(x, y, width, height):
    return [float(v) for v in (x, y, x + width, y, x + width, y + height, x, y + height)]


def runs(mask):
    """COCO's uncompressed run lengths: down the columns, zeros first."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + counts}


@pytest.fixture
def crowd():
    mask = np.zeros((8, 10), np.uint8)
    mask[5:, 1:9] = 1
    mask[6, 4] = 0
    return mask


@pytest.fixture
def root(tmp_path, crowd):
    """Two images: overlapping polygons and a crowd on one, nothing on the other."""
    (tmp_path / "annotations").mkdir()
    write(
        tmp_path,
        annotations=[
            annotation(11, "person", [box(1, 1, 4, 4), box(7, 0, 2, 2)]),
            annotation(10, "dog", [box(3, 3, 4, 4)]),
            annotation(12, "toothbrush", [box(0, 0, 1, 1)]),
            annotation(900, "bicycle", runs(crowd), iscrowd=1),
        ],
    )
    return tmp_path


def annotation(number, name, segmentation, iscrowd=0):
    return {
        "id": number,
        "image_id": 7,
        "category_id": IDS[name],
        "segmentation": segmentation,
        "iscrowd": iscrowd,
    }


def write(root, **changes):
    content = {
        "images": [
            {"id": 7, "file_name": "000000000007.jpg", "height": 8, "width": 10},
            {"id": 5, "file_name": "000000000005.jpg", "height": 4, "width": 3},
        ],
        "categories": [{"id": IDS[name], "name": name} for name in sorted(IDS)],
        "annotations": [],
    }
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content | changes))


def path_of(root, number):
    return root / "annotations" / "val2017" / f"{number:012}_instanceTrainIds.png"


def drawn(root, number):
    with Image.open(path_of(root, number)) as image:
        assert image.mode == "L"
        return np.array(image)


def test_instances_become_label_maps(root, crowd, capsys):
    assert convert(root) == 0
    expected = np.where(crowd, BICYCLE, 0)
    expected[3:7, 3:7] = DOG
    expected[1:5, 1:5] = PERSON
    expected[0:2, 7:9] = PERSON
    expected[0, 0] = TOOTHBRUSH
    assert drawn(root, 7).tolist() == expected.tolist()
    assert drawn(root, 5).tolist() == np.zeros((4, 3)).tolist()
    folder = root / "annotations" / "val2017"
    out = capsys.readouterr().out
    assert out == f"2 label maps written to {folder}, 0 there already\n"


def test_what_was_made_is_a_data_set(root):
    convert(root)
    (root / "images" / "val2017").mkdir(parents=True)
    for number, size in ((7, (10, 8)), (5, (3, 4))):
        Image.new("RGB", size).save(root / "images" / "val2017" / f"{number:012}.jpg")
    dataset = load("coco-object", root)
    labels = dataset.read(dataset.samples[1])[1]
    assert dataset.classes[labels[3, 6]] == "dog"
    assert dataset.classes[labels[7, 1]] == "bicycle"


def test_a_conversion_goes_on_where_it_stopped(root, capsys):
    convert(root)
    Image.fromarray(np.full((8, 10), 3, np.uint8)).save(path_of(root, 7))  # somebody else's
    path_of(root, 5).write_bytes(path_of(root, 5).read_bytes()[:70])
    capsys.readouterr()
    assert convert(root) == 0
    assert "1 label map written" in capsys.readouterr().out
    assert (drawn(root, 7) == 3).all()
    assert drawn(root, 5).shape == (4, 3)


def test_stuff_becomes_background(root, capsys):
    convert(root)
    folder = root / "annotations" / "val2017"
    stuff = np.array([[0, 79, 80, 170, 255]], np.uint8)
    Image.fromarray(stuff).save(folder / "000000000007_labelTrainIds.png")
    capsys.readouterr()
    assert convert(root, "stuff") == 0
    assert "1 label map written" in capsys.readouterr().out
    assert drawn(root, 7).tolist() == [[1, 80, 0, 0, 0]]
    assert convert(root, "stuff") == 0
    assert "0 label maps written" in capsys.readouterr().out


def test_what_is_no_map_of_ours_is_left_alone(root, capsys):
    """A picture that is no label map, a text, a folder and a link in the places of maps."""
    convert(root)
    places = [path_of(root, 7), path_of(root, 5)]
    for make in (
        lambda path: Image.new("RGB", (3, 4)).save(path),
        lambda path: path.write_text("mine"),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("elsewhere"),
    ):
        for path in places:
            path.unlink()
        make(places[0])
        capsys.readouterr()
        assert convert(root) == 2
        said = capsys.readouterr()
        assert "1 label map written" in said.out
        assert "1 could not be made" in said.out
        assert sum(f"{places[0]}: " in line for line in said.err.splitlines()) == 1
        if places[0].is_dir():
            places[0].rmdir()
            places[0].touch()
        else:
            assert places[0].is_symlink() or places[0].stat().st_size > 0
    assert not (places[0].parent / "elsewhere").exists()


def refused(root, message, source="instances"):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        convert(root, source)


def test_what_is_missing_is_named(root, tmp_path, monkeypatch):
    path = root / "annotations" / "instances_val2017.json"
    refused(root, f"{path.parent / 'val2017'}: holds no *_labelTrainIds.png", "stuff")
    path.unlink()
    refused(root, f"{path}: no such file; it is in COCO's annotations_trainval2017.zip")
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    refused(root, 'pycocotools is not installed; get it: pip install "nerve-fast[data]"')


def test_other_annotations_are_refused(root):
    path = root / "annotations" / "instances_val2017.json"
    write(root, categories=[{"id": 1, "name": "person"}])
    refused(root, f"{path}: has 1 categories; expected COCO's 80, and no other")
    for text in ("{", "3", '{"annotations": [{}]}'):
        path.write_text(text)
        refused(root, f"{path}: not COCO's instance annotations")
