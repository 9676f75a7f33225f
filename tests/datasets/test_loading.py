import re
import shutil

import numpy as np
import pytest
from PIL import Image

from nerve_fast import InputError
from nerve_fast.datasets import NAMES, load, words
from nerve_fast.datasets.loading import find

REDUCED = {"voc20", "pc59", "ade20k"}
LISTED = {
    "voc21": ("VOC2012", "ImageSets/Segmentation/val.txt"),
    "voc20": ("VOC2012", "ImageSets/Segmentation/val.txt"),
    "pc60": ("VOC2010", "ImageSets/SegmentationContext/val.txt"),
    "pc59": ("VOC2010", "ImageSets/SegmentationContext/val.txt"),
}


@pytest.mark.parametrize("name", [*NAMES, "folder"])
def test_load_finds_images_and_labels(make, tmp_path, name):
    masks = make(name, tmp_path)
    dataset = load(name, tmp_path)
    assert dataset.name == name
    order = list(masks) if name in LISTED else sorted(masks)
    assert [sample.name for sample in dataset.samples] == order
    assert dataset.has_background == (dataset.classes[0] == "background")
    assert dataset.has_background == (name in {"voc21", "pc60", "coco-object", "folder"})
    for sample in dataset.samples:
        image, labels = dataset.read(sample)
        expected = masks[sample.name].astype(int)
        if name in REDUCED:
            expected = np.where((expected == 0) | (expected == 255), 255, expected - 1)
        assert labels.tolist() == expected.tolist()
        assert image.size == labels.shape[::-1]


@pytest.mark.parametrize("name", LISTED)
def test_the_devkit_will_do_as_root(make, tmp_path, name):
    year = LISTED[name][0]
    make(name, tmp_path / "VOCdevkit" / year)
    for root in (tmp_path, tmp_path / "VOCdevkit", str(tmp_path / "VOCdevkit" / year)):
        assert len(load(name, root)) == 3


def test_ade_will_do_from_above(make, tmp_path):
    make("ade20k", tmp_path / "ADEChallengeData2016")
    assert len(load("ade20k", tmp_path)) == 3


def refused(name, root, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load(name, root)


def test_two_places_that_fit_are_not_chosen_from(make, tmp_path):
    places = [tmp_path / "VOC2012", tmp_path / "VOCdevkit" / "VOC2012"]
    for place in places:
        make("voc21", place)
    refused(
        "voc21", tmp_path, f"{tmp_path}: both {places[0]} and {places[1]} fit; name one of them"
    )


def test_wrong_roots_are_named(make, tmp_path):
    missing = tmp_path / "missing"
    refused("voc21", missing, f"{missing}: no such folder; expected the root of the data set voc21")
    refused("voc21", None, "root is missing; expected the root of the data set voc21")
    message = f"root is {tmp_path}; leave it out, the data set tiny has no files"
    refused("tiny", tmp_path, message)
    make("coco-stuff", tmp_path)
    images = tmp_path / "JPEGImages"
    refused("voc21", tmp_path, f"{images}: no such folder; expected the images there")
    make("voc21", tmp_path / "voc")
    shutil.rmtree(tmp_path / "voc" / "SegmentationClass")
    masks = tmp_path / "voc" / "SegmentationClass"
    refused("voc21", tmp_path / "voc", f"{masks}: no such folder; expected the masks there")
    masks = tmp_path / "annotations" / "val2017"
    shutil.rmtree(masks)
    advice = "`nerve-fast data coco-object ROOT` makes it"
    message = f"{masks}: no such folder; expected the masks there; {advice}"
    refused("coco-object", tmp_path, message)


def test_unknown_data_sets_are_refused(tmp_path):
    refused(
        "voc",
        tmp_path,
        f"the data set is 'voc'; expected one of {', '.join(NAMES)}, folder, tiny",
    )


def test_a_list_that_cannot_be_used_is_named(make, tmp_path):
    make("voc21", tmp_path)
    names = tmp_path / "ImageSets/Segmentation/val.txt"
    names.write_text("\n\n")
    refused("voc21", tmp_path, f"{names}: names no image; expected *.jpg")
    names.write_text("2007_000033\n2007_000033\n")
    twice = tmp_path / "JPEGImages/2007_000033.jpg"
    refused("voc21", tmp_path, f"{names}: two images are named 2007_000033, {twice} and {twice}")
    names.write_bytes(b"\xff\xfe\x00")
    refused("voc21", tmp_path, f"{names}: not a text in UTF-8")
    names.unlink()
    refused("voc21", tmp_path, f"{names}: no such file")


def test_a_list_has_the_ends_of_lines_of_any_system(make, tmp_path):
    make("voc21", tmp_path)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_bytes(b"2007_000033 \r\n\r\n2009_000003")
    samples = load("voc21", tmp_path).samples
    assert [sample.name for sample in samples] == ["2007_000033", "2009_000003"]


def test_no_image_at_all_is_said(make, tmp_path, image_of):
    make("ade20k", tmp_path)
    for number in range(3):
        image_of("ade20k", tmp_path, number).unlink()
    folder = tmp_path / "images/validation"
    refused("ade20k", tmp_path, f"{folder}: names no image; expected *.jpg")


def test_hidden_files_are_no_images(make, tmp_path):
    make("ade20k", tmp_path)
    (tmp_path / "images/validation/._ADE_val_00000001.jpg").touch()
    assert len(load("ade20k", tmp_path)) == 3


def test_two_cities_with_one_name_are_refused(make, tmp_path):
    make("cityscapes", tmp_path)
    first = tmp_path / "leftImg8bit/val/munster/munster_000001_000019_leftImg8bit.png"
    second = tmp_path / "leftImg8bit/val/zurich" / first.name
    second.parent.mkdir()
    shutil.copy(first, second)
    refused(
        "cityscapes",
        tmp_path,
        f"{tmp_path / 'leftImg8bit/val'}: two images are named munster_000001_000019, {first} and "
        f"{second}",
    )


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("voc21", ""),
        ("pc60", "; mmsegmentation's tools/dataset_converters/pascal_context.py makes it"),
        ("coco-object", "; `nerve-fast data coco-object ROOT` makes it"),
        ("coco-stuff", "; mmsegmentation's tools/dataset_converters/coco_stuff164k.py makes it"),
        ("cityscapes", "; cityscapesScripts' csCreateTrainIdLabelImgs makes it"),
        ("folder", ""),
    ],
)
def test_a_missing_mask_is_named(make, tmp_path, mask_of, name, advice):
    make(name, tmp_path)
    mask = mask_of(name, tmp_path, 1)
    mask.unlink()
    refused(name, tmp_path, f"{mask}: no such mask{advice}")
    assert len(find(name, tmp_path)) == 3


def test_a_missing_image_is_named(make, tmp_path, image_of):
    make("voc21", tmp_path)
    image = image_of("voc21", tmp_path, 2)
    image.unlink()
    refused("voc21", tmp_path, f"{image}: no such image")


def test_a_folder_has_its_own_names_and_kinds_of_images(make, tmp_path, image_of):
    make("folder", tmp_path)
    (tmp_path / "names.txt").write_text("\n".join(["cat, kitten", *"abcdefghijklmnopqr"]))
    jpg = image_of("folder", tmp_path, 0)
    Image.open(jpg).save(jpg.with_suffix(".PNG"))
    jpg.unlink()
    (tmp_path / "images" / "notes.txt").write_text("no image")
    dataset = load("folder", tmp_path)
    assert [sample.name for sample in dataset.samples] == ["a", "b", "c"]
    assert dataset.classes[:2] == ("cat", "a")
    assert words(dataset, "plain")[:2] == (("cat", "kitten"), ("a",))
    assert not dataset.has_background


def test_a_background_of_a_folder_may_have_words(make, tmp_path):
    make("folder", tmp_path)
    (tmp_path / "names.txt").write_text("background, sky, wall\ncat\n")
    dataset = load("folder", tmp_path)
    assert dataset.has_background
    assert words(dataset, "plain") == (("background", "sky", "wall"), ("cat",))


def test_a_folder_that_is_not_whole_is_refused(make, tmp_path):
    make("folder", tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("cat\n\ndog\n")
    refused("folder", tmp_path, f"{names}: label 2 is ''; it holds an empty name")
    names.write_text("\n".join(f"class {number}" for number in range(256)))
    refused("folder", tmp_path, f"{names}: names 256 classes; expected 255 at most")
    names.unlink()
    refused("folder", tmp_path, f"{names}: no such file")
    names.write_text("cat\n")
    shutil.copy(tmp_path / "images" / "a.jpg", tmp_path / "images" / "a.png")
    first, second = tmp_path / "images" / "a.jpg", tmp_path / "images" / "a.png"
    refused(
        "folder", tmp_path, f"{tmp_path / 'images'}: two images are named a, {first} and {second}"
    )
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    refused("folder", tmp_path, f"{tmp_path / 'images'}: holds no image")
    shutil.rmtree(tmp_path / "masks")
    refused("folder", tmp_path, f"{tmp_path / 'masks'}: no such folder")
