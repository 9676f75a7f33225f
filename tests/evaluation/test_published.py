"""What was published, and the commands that make it here."""

import re
import shlex

import pytest

from nerve_fast.cli import main as cli
from nerve_fast.evaluation import published
from nerve_fast.evaluation.ablation.ablations import PUBLISHED
from nerve_fast.evaluation.presets import clip_of, settings_of
from nerve_fast.evaluation.published import COLUMNS, average_of_seven
from nerve_fast.evaluation.table import report


def test_printed_averages_are_means_of_seven_or_of_eight():
    """A mean that seven figures do not have leaves the eighth a figure that can be."""
    for row in PUBLISHED["table1"]["rows"]:
        if row["average"] is None:
            continue
        if row.get("average_of") == 8:
            assert 0 < 8 * row["average"] - sum(row["miou"]) < 100
            assert abs(row["average"] - average_of_seven(row)) > 0.4
        else:
            assert row["average"] == pytest.approx(average_of_seven(row), abs=0.051)


def commands_of(text):
    """Commands for what was not measured, by row."""
    found = {}
    for line in text.split("## What was not measured")[1].splitlines():
        if line.startswith("- "):
            name, _, what = line[2:].partition(": ")
            found[name] = what.split("`")[1]
    return found


def runs_of(command):
    """Each run of a command, with its loop undone."""
    loop = re.fullmatch(r"for set in (.*); do (.*); done", command)
    if loop is None:
        return [command]
    return [loop[2].replace("$set", name) for name in loop[1].split()]


def test_each_row_without_a_result_has_the_command_that_makes_it():
    text = report([], None)
    assert "## What was measured" not in text
    commands = commands_of(text)
    assert len(commands) == 18
    for command in commands.values():
        for run in runs_of(command):
            options = cli._parser().parse_args(shlex.split(run)[1:])
            assert options.root.name == options.dataset
            # The preset has settings for it, or this raises.
            settings_of(options.preset, options.dataset, True)
    assert len(runs_of(commands["SCLIP"])) == 8
    assert len(runs_of(commands["NERVE"])) == 7
    assert commands["SCLIP, post-processed"].endswith("--preset sclip --refiner pamr; done")
    assert "--preset clearclip-l14" in commands["ClearCLIP, post-processed"]


def test_a_command_is_of_the_data_sets_that_were_not_measured(monkeypatch):
    row = next(row for row in PUBLISHED["table1"]["rows"] if row["method"] == "CaR")
    monkeypatch.setattr(published, "datasets_of", lambda preset: ("voc21", "coco-object"))
    assert published.command_of(row, ()) == (
        "for set in voc21 coco-object; do nerve-fast evaluate --dataset $set --root ROOTS/$set "
        "--preset car; done"
    )
    assert published.command_of(row, ("voc21",)) == (
        "nerve-fast evaluate --dataset coco-object --root ROOTS/coco-object --preset car"
    )
    assert published.command_of(row, ("voc21", "coco-object")) == ""


def test_what_was_measured_needs_no_command(result):
    paths = [result(dataset, 0.5) for dataset in COLUMNS]
    assert "NERVE" not in commands_of(report(paths, None))
    assert len(runs_of(commands_of(report(paths[1:], None))["NERVE"])) == 1
    # Another prior's refinement by iSeg is no row of iSeg.
    other = result("voc21", 0.5, preset="naclip", refiner__name="iseg")
    assert "iSeg" in commands_of(report([other], None))


def test_a_row_may_be_of_two_checkpoints(result):
    """GroupViT's COCO-Object is of another one than its VOC21, in one row and one command."""
    assert len(runs_of(commands_of(report([], None))["GroupViT"])) == 3
    checkpoints = {
        dataset: clip_of("groupvit", dataset) for dataset in ("voc21", "pc60", "coco-object")
    }
    assert checkpoints == {
        "voc21": "nvidia/groupvit-gcc-yfcc",
        "pc60": "nvidia/groupvit-gcc-yfcc",
        "coco-object": "nvidia/groupvit-gcc-redcaps",
    }
    text = report([result(dataset, 0.5, preset="groupvit") for dataset in checkpoints], None)
    (row,) = [line for line in text.splitlines() if line.startswith("| **GroupViT")]
    assert row.startswith("| **GroupViT** | **(1) measured** | **No** | **50.0 (-2.3)** |")
    assert row.count("**50.0 (") == 3
    other = result("coco-object", 0.4, preset="groupvit", models__clip="nvidia/groupvit-gcc-yfcc")
    text = report([result("voc21", 0.5, preset="groupvit"), other], None)
    assert "- clip nvidia/groupvit-gcc-yfcc for nvidia/groupvit-gcc-redcaps" in text
    assert "| **GroupViT†** | **(2) measured**" in text


def test_figures_of_a_network_that_no_preset_has_are_no_measure(result):
    """PixelCLIP's ADE20K in the slides is of its ConvNeXt, the other columns of its ViT-B/16."""
    text = report([], None)
    assert "ade20k" not in commands_of(text)["PixelCLIP"]
    assert "`; ADE is of their ConvNeXt-B, which no preset reads" in text
    sets = ("voc20", "ade20k")
    text = report([result(dataset, 0.8, preset="pixelclip") for dataset in sets], None)
    (row,) = [line for line in text.splitlines() if line.startswith("| **PixelCLIP")]
    assert "| **80.0 (-5.9)** | **80.0** |" in row
