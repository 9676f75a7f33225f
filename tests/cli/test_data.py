import argparse

import pytest
from PIL import Image

from nerve_fast.cli.data import add_data


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_data(parser.add_subparsers())
    options = parser.parse_args(["data", *map(str, arguments)])
    return options.run(options)


def test_data_check(tmp_path, capsys):
    for part, ending in (
        ("leftImg8bit", "_leftImg8bit.png"),
        ("gtFine", "_gtFine_labelTrainIds.png"),
    ):
        folder = tmp_path / part / "val" / "bonn"
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB" if part == "leftImg8bit" else "L", (4, 3)).save(
                folder / f"bonn_{number}{ending}"
            )
    assert run("check", "cityscapes", tmp_path) == 0
    assert "cityscapes: 3 images, 19 classes, no problem" in capsys.readouterr().out


def test_data_check_knows_its_names(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("check", "tiny", tmp_path)
    assert "invalid choice: 'tiny'" in capsys.readouterr().err


def test_data_coco_object(tmp_path, capsys):
    folder = tmp_path / "annotations" / "val2017"
    folder.mkdir(parents=True)
    Image.new("L", (3, 2), 255).save(folder / "000000000007_labelTrainIds.png")
    assert run("coco-object", tmp_path, "--source", "stuff") == 0
    assert (folder / "000000000007_instanceTrainIds.png").exists()
    assert f"1 label map written to {folder}, 0 there already" in capsys.readouterr().out
