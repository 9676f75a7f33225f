"""Each preset, end to end, on each data set that it has settings for, with small networks."""

import json
import shutil

import numpy as np
import pytest
import torch
from small_data_sets import build
from transformers import CLIPConfig, CLIPModel

from nerve_fast import datasets
from nerve_fast.backbones import sam, text_to_image
from nerve_fast.cli import main as cli
from nerve_fast.datasets.layouts import LAYOUTS
from nerve_fast.evaluation import record
from nerve_fast.evaluation.method import needs_graph
from nerve_fast.evaluation.presets import PRESETS, datasets_of, graph_of, settings_of
from nerve_fast.priors import ENTRIES
from nerve_fast.tiny import MODELS

SIZE = (28, 24)
"""Width and height of the image of each data set."""

SETS = {preset: datasets_of(preset) or (*LAYOUTS, "folder") for preset in PRESETS}
"""The data sets of each preset."""

TURNS = {preset: sets[0] for preset, sets in SETS.items()}
"""One data set of each preset: what is run each time."""

# Presets that have all data sets take one each, so that all have their turn.
TURNS |= dict(
    zip((preset for preset, sets in SETS.items() if len(sets) >= 8), LAYOUTS, strict=False)
)

PAIRS = [
    pytest.param(preset, dataset, marks=() if TURNS[preset] == dataset else pytest.mark.slow)
    for preset, sets in SETS.items()
    for dataset in sets
]


def test_all_data_sets_have_their_turn():
    assert {*TURNS.values()} >= {*LAYOUTS}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """``roots(dataset)``: where it lies, with one image; and the mask as it stands in its file."""
    made = {}

    def root_of(dataset):
        if dataset not in made:
            root = tmp_path_factory.mktemp(dataset)
            (mask,) = build(dataset, root, [SIZE]).values()
            made[dataset] = root, mask
        return made[dataset]

    return root_of


@pytest.fixture(scope="module")
def roomy_clip(tmp_path_factory):
    """The small CLIP with room for prompts of 160 tokens: its tokenizer has few words whole."""
    folder = tmp_path_factory.mktemp("roomy") / "clip"
    shutil.copytree(MODELS / "clip", folder)
    config = CLIPConfig.from_pretrained(folder)
    config.text_config.max_position_embeddings = 160
    CLIPModel(config).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 160}))
    return folder


@pytest.fixture(scope="module")
def flags_of(systems, ovdiff_networks, roomy_clip):
    """``flags_of(preset, dataset)``: the small networks that a preset needs, as flags."""
    instead = {"groupvit": systems["groupvit"], "car": roomy_clip}
    further = {
        "proxy": systems["dino"],
        "dino": systems["dino"],
        "found": systems["found"],
        "weights": systems["pixelclip"],
        "judge": roomy_clip,
        "diffusion": systems["diffusion"],
    }

    def flags(preset, dataset):
        settings = settings_of(preset, dataset, True)
        by_dino = graph_of(preset) is not None
        if needs_graph(settings.refiner) and not by_dino:
            found = ["--models", "tiny"]
        else:
            found = ["--clip", instead.get(settings.prior, MODELS / "clip")]
            found += ["--graph", systems["dino"]] if by_dino else []
        needed = ENTRIES[settings.prior].networks
        known = ovdiff_networks if settings.prior == "ovdiff" else further
        if needed:
            found += ["--prior-network", *(f"{name}={known[name]}" for name in needed)]
        if settings.prior == "ovdiff":
            found += ["--prior-support", "1", "--prior-resolution", "64"]
        return found

    return flags


def truth_of(dataset, mask):
    """The pixels of each class: of a mask as it stands in its file."""
    labels = mask.astype(int)
    if dataset in LAYOUTS and LAYOUTS[dataset].reduce_zero_label:
        labels = np.where((labels == 0) | (labels == 255), 256, labels) - 1
    return torch.from_numpy(labels[labels != 255]).bincount()


def prompts_of(preset, dataset):
    """How many prompts a word has: OpenAI's 80, unless the authors take others."""
    if preset.startswith("cliper"):
        return 15 if dataset in ("voc21", "voc20", "pc59", "cityscapes") else 80
    one = dict.fromkeys(("gem", "groupvit", "clip-diy", "ovdiff"), 1)
    return {**one, "pixelclip": 8, "car": 15, "iseg": 85}.get(preset, 80)


@pytest.mark.parametrize(("preset", "dataset"), PAIRS)
def test_a_preset_runs_on_a_data_set(roots, flags_of, tmp_path, monkeypatch, preset, dataset):
    # Twenty classes' images would take their time.
    monkeypatch.setattr(text_to_image, "STEPS", 1)
    monkeypatch.setattr(sam, "POINTS", 2)
    (root, mask), out = roots(dataset), tmp_path / "out"
    flags = ["--dataset", dataset, "--root", root, "--preset", preset, "-o", out, "--device", "cpu"]
    command = [str(word) for word in ("evaluate", *flags, *flags_of(preset, dataset))]
    assert cli.main(command) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["complete"]
    assert results["failed"] == 0
    assert 0 <= results["miou"] <= 1
    assert 0 <= results["present_miou"] <= 1
    assert 0 <= results["boundary_iou"] <= 1
    run = results["run"]
    assert run["preset"]["name"] == preset
    assert run["weights"]["prior"]

    # Every pixel that has a class was given a label, or none, and counts once.
    found = datasets.load(dataset, root)
    known = record.done(out, len(found.classes))
    counted = record.total(known, list(known), len(found.classes))[0].sum(1)
    expected = truth_of(dataset, mask)
    assert counted.tolist() == [*expected.tolist(), *[0] * (len(counted) - len(expected))]

    # As the preset has it.
    usual = settings_of(preset, dataset, found.has_background)
    assert run["settings"]["prior"] == usual.prior
    assert run["settings"]["refiner"] == usual.refiner
    if usual.prior != "ovdiff":
        assert run["settings"]["resolution"] == usual.resolution
    assert run["models"]["templates"] == prompts_of(preset, dataset)
    if usual.refiner == "cliper":
        assert run["refiner"] == {"name": "cliper", "cut": usual.cut, "side": 512}
    elif usual.refiner == "none":
        assert run["refiner"] == {"name": "none"}
    if preset == "cliper" and dataset == "voc21":
        assert len(run["dataset"]["words"][0]) == 25
    # Once more, everything is known.
    assert cli.main(command) == 0
