import numpy as np
import pytest
from PIL import Image

from nerve_fast import InputError
from nerve_fast.datasets.check import check


def test_a_data_set_without_a_problem(make, tmp_path, capsys):
    make("voc21", tmp_path)
    assert check("voc21", tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == [
        "note: 1449 images were published, here are 3",
        "voc21: 3 images, 21 classes, no problem",
    ]


def test_a_folder_was_published_by_nobody(make, tmp_path, capsys):
    make("folder", tmp_path)
    assert check("folder", tmp_path) == 0
    assert capsys.readouterr().out == "folder: 3 images, 19 classes, no problem\n"


def test_every_problem_is_a_line(make, tmp_path, capsys, mask_of, image_of):
    make("coco-object", tmp_path)
    image, small, beyond = (
        image_of("coco-object", tmp_path, 0),
        mask_of("coco-object", tmp_path, 1),
        mask_of("coco-object", tmp_path, 2),
    )
    image.write_text("no image")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(small)
    Image.fromarray(np.full((4, 6), 81, np.uint8)).save(beyond)
    assert check("coco-object", tmp_path) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines[:3]] == [str(small), str(beyond), str(image)]
    assert "the mask is 2 × 2; expected 4 × 6" in lines[0]
    assert "holds the label 81; expected 0 to 80" in lines[1]
    assert "not an image" in lines[2]
    assert lines[3:] == [
        "note: 5000 images were published, here are 3",
        "coco-object: 3 images, 81 classes, 3 problems",
    ]


def test_many_problems_are_counted(make, tmp_path, capsys):
    make("ade20k", tmp_path)
    for number in range(4, 27):
        Image.new("RGB", (2, 2)).save(tmp_path / f"images/validation/ADE_val_{number:08}.jpg")
    assert check("ade20k", tmp_path) == 2
    lines = capsys.readouterr().out.splitlines()
    assert sum("no such mask" in line for line in lines) == 20
    assert lines[20] == "and 3 more"
    assert lines[-1] == "ade20k: 26 images, 150 classes, 23 problems"


def test_what_cannot_be_listed_is_refused(tmp_path):
    with pytest.raises(InputError, match="leftImg8bit/val: no such folder"):
        check("cityscapes", tmp_path)


def test_files_of_many_pixels_are_problems_as_far_as_is_asked(make, tmp_path, capsys):
    make("voc21", tmp_path)
    assert check("voc21", tmp_path, "23") == 2
    lines = capsys.readouterr().out.splitlines()
    assert "6 × 4" in lines[0]
    assert lines[-1] == "voc21: 3 images, 21 classes, 3 problems"
    assert check("voc21", tmp_path, 24) == 0
    with pytest.raises(InputError, match="max_pixels is 'many'"):
        check("voc21", tmp_path, "many")
