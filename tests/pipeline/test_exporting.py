"""Exports of a run: whole or not at all, and of the label maps in the folder."""

import csv
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from nerve_fast.cli import main as cli
from nerve_fast.imaging.exports import EXPORTS
from nerve_fast.pipeline import batch
from nerve_fast.tiny.scenes import generate

LABELS = ["grass", "water, sea", "ball"]
ALL = ("--export", *EXPORTS)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        generate(980_000 + i, (64, 96) if i % 2 else 64)[0].save(folder / f"scene{i}.png")
    return folder


def segment(*arguments):
    words = ("segment", *arguments, "--labels", "; ".join(LABELS), "--models", "tiny")
    return cli.main([str(word) for word in (*words, "--device", "cpu", "--steps", 1)])


def label_maps(out):
    """By stem, −1 where there is no label."""
    found = {}
    for path in sorted(out.glob("*.labels.png")):
        values = np.asarray(Image.open(path)).astype(int)
        found[path.name.removesuffix(".labels.png")] = np.where(values == 255, -1, values)
    return found


def coco_maps(out):
    """What pycocotools reads."""
    read, found = COCO(str(out / "coco.json")), {}
    for entry in read.loadImgs(read.getImgIds()):
        label_map = np.full((entry["height"], entry["width"]), -1)
        for annotation in read.loadAnns(read.getAnnIds(imgIds=entry["id"])):
            label_map[read.annToMask(annotation) > 0] = annotation["category_id"] - 1
        found[Path(entry["file_name"]).stem] = label_map
    return found


def assert_equal(maps, others):
    assert list(maps) == list(others)
    assert all(np.array_equal(maps[name], others[name]) for name in maps)


def test_all_formats_lead_back_to_the_label_maps(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert segment(folder, "-o", out, *ALL, "--threshold", 0.7, "--polygon-tolerance", 0) == 0
    maps = label_maps(out)
    assert len(maps) == 3
    assert any((label_map == -1).any() for label_map in maps.values())
    assert_equal(coco_maps(out), maps)
    with (out / "areas.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = (out / "voc/ImageSets/Segmentation/default.txt").read_text().split()
    assert names == list(maps)
    for stem, label_map in maps.items():
        present = [number for number in np.unique(label_map) if number >= 0]
        regions = json.loads((out / f"{stem}.polygons.json").read_text())["regions"]
        assert [region["number"] for region in regions] == present
        assert [region["area"] for region in regions] == [
            (label_map == number).sum() for number in present
        ]
        for path in (out / f"{stem}.masks").iterdir():
            number = int(path.name.split("-")[0])
            assert np.array_equal(np.asarray(Image.open(path)) > 0, label_map == number)
        values = np.asarray(Image.open(out / f"voc/SegmentationClass/{stem}.png")).astype(int)
        assert np.array_equal(values, np.where(label_map < 0, 255, label_map + 1))
        own = {row["label"]: row for row in rows if row["image"] == f"{stem}.png"}
        for region in regions:
            row = own.pop(region["label"])
            assert int(row["pixels"]) == region["area"]
            assert float(row["confidence"]) == pytest.approx(region["confidence"], abs=1e-6)
            # Of pixels whose label has a probability of 0.7 or more.
            assert region["confidence"] >= 0.7
        assert set(own) <= {""}


def test_a_run_goes_on_and_shared_files_are_of_all_of_it(folder, tmp_path, capsys):
    out = tmp_path / "out"

    def written(*flags):
        capsys.readouterr()
        assert segment(folder, "-o", out, "--resume", *flags) == 0
        return int(capsys.readouterr().out.split(" image")[0].split()[-1])

    assert written() == 3
    # Confidences are not in label maps that were made without exports.
    assert written("--export", "coco") == 3
    assert [written(*ALL), written("--export", "coco", "masks")] == [3, 0]
    assert [written(*ALL, "--polygon-tolerance", 2), written(*ALL)] == [3, 3]
    (out / "scene0.labels.png").unlink()
    (out / "scene1.polygons.json").write_bytes(b"")
    next((out / "scene2.masks").iterdir()).unlink()
    (out / "coco.json").unlink()
    assert [written(*ALL), written(*ALL)] == [3, 0]
    assert_equal(coco_maps(out), label_maps(out))
    # Another image, and other settings, are in what all share.
    generate(980_009, 64)[0].save(folder / "scene3.png")
    assert written("--export", "coco") == 1
    assert len(coco_maps(out)) == 4
    assert written("--export", "coco", "--threshold", 0.9) == 4
    assert_equal(coco_maps(out), label_maps(out))


def test_an_interrupted_run_has_no_shared_file_of_an_earlier_one(folder, tmp_path, monkeypatch):
    out, done = tmp_path / "out", []
    assert segment(folder, "-o", out, *ALL) == 0
    write = batch.write

    def interrupted(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(arguments)
        write(*arguments)

    monkeypatch.setattr(batch, "write", interrupted)
    flags = (*ALL, "--threshold", 0.9)
    assert segment(folder, "-o", out, *flags) == 130
    assert not (out / "coco.json").exists()
    assert not (out / "areas.csv").exists()
    monkeypatch.undo()
    assert segment(folder, "-o", out, "--resume", *flags) == 0
    assert_equal(coco_maps(out), label_maps(out))


def test_an_image_that_fails_is_in_no_shared_file(folder, tmp_path, capsys):
    (folder / "scene1.png").write_text("no image")
    assert segment(folder, "-o", tmp_path / "out", *ALL) == 2
    assert list(coco_maps(tmp_path / "out")) == ["scene0", "scene2"]


@pytest.mark.parametrize("name", list(EXPORTS))
def test_a_full_disk_leaves_no_file_of_the_format(folder, tmp_path, monkeypatch, capsys, name):
    """The writes of the one format fail, half-way."""
    out = tmp_path / "out"
    files = {
        "coco": ("coco.json", "json"),
        "polygons": ("scene0.polygons.json", "json"),
        "masks": ("scene0.masks", "png"),
        "voc": ("voc", "png"),
        "csv": ("areas.csv", "csv"),
    }
    place, _ = files[name]
    replace = os.replace

    def full(source, target):
        if place in Path(target).parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert segment(folder / "scene0.png", "-o", out, "--export", name) == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert "Traceback" not in err
    left = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert not any(place in name for name in left)
    assert left <= {"scene0.overlay.png", "scene0.labels.png"}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("coco", "coco.json"),
        ("csv", "areas.csv"),
        ("voc", "voc/labelmap.txt"),
        ("voc", "voc/ImageSets/Segmentation/default.txt"),
        ("voc", "voc/SegmentationClass/scene0.png"),
        ("polygons", "scene0.polygons.json"),
        ("masks", "scene0.masks/mine.png"),
        ("masks", "scene0.masks"),
    ],
)
def test_files_of_others_are_left_alone(folder, tmp_path, capsys, name, place):
    out = tmp_path / "out"
    (out / place).parent.mkdir(parents=True)
    (out / place).write_text("mine")
    assert segment(folder / "scene0.png", "-o", out, "--export", name) == 2
    err = capsys.readouterr().err
    assert f"{out / place}: was not made by this command, and is left alone" in err
    assert (out / place).read_text() == "mine"
    assert [path for path in out.rglob("*") if path.is_file()] == [out / place]


def test_mistakes_are_one_line_and_leave_nothing(folder, tmp_path, capsys):
    out = tmp_path / "out"
    cases = {
        ("--export", "json"): "export is 'json'; expected one of coco, polygons, masks, voc, csv",
        ("--export", "polygons", "--polygon-tolerance", -1): "--polygon-tolerance is -1.0",
        ("--export", "polygons", "--polygon-tolerance", "nan"): "--polygon-tolerance is nan",
    }
    for flags, said in cases.items():
        assert segment(folder, "-o", out, *flags) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
    assert not out.exists()


def test_numbers_of_a_mask_are_the_labels_that_occur(folder, tmp_path, capsys):
    mask = np.zeros((64, 64), np.uint8)
    mask[:4, :4], mask[-4:, -4:] = 3, 200
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out"
    words = ["segment", folder / "scene0.png", "-o", out, "--models", "tiny", "--device", "cpu"]
    words += ["--scribbles", tmp_path / "mask.png", "--export", "coco", "voc"]
    assert cli.main([str(word) for word in words]) == 0
    read = COCO(str(out / "coco.json"))
    assert [one["name"] for one in read.loadCats(read.getCatIds())] == ["3", "200"]
    assert_equal(coco_maps(out), label_maps(out))


def test_seeds_of_several_images_share_one_list_of_labels(folder, tmp_path, capsys):
    points = {"scene0.png": {"cup": [[3, 4]]}, "scene1.png": {"table": [[5, 6]], "cup": [[60, 9]]}}
    (tmp_path / "points.json").write_text(json.dumps(points))
    out = tmp_path / "out"
    words = ["segment", folder / "scene0.png", folder / "scene1.png", "-o", out, "--models", "tiny"]
    words += ["--points-file", tmp_path / "points.json", "--export", "coco", "--device", "cpu"]
    assert cli.main([str(word) for word in words]) == 0
    read = COCO(str(out / "coco.json"))
    assert [one["name"] for one in read.loadCats(read.getCatIds())] == ["cup", "table"]
    maps = coco_maps(out)
    assert maps["scene0"][4, 3] == 0
    assert maps["scene1"][6, 5] == 1
    assert maps["scene1"][9, 60] == 0
