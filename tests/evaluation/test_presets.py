import dataclasses

import pytest

from nerve_fast import InputError
from nerve_fast.datasets import Dataset
from nerve_fast.datasets.vocabulary import classes_of, words
from nerve_fast.evaluation.presets import (
    PRESETS,
    REFINERS,
    Settings,
    by_authors,
    clip_of,
    diffusion_of,
    graph_of,
    iseg_of,
    note_of,
    settings_of,
)
from nerve_fast.priors import PriorConfig

BACKGROUND = {"voc21", "pc60", "coco-object"}
WHOLE = (None, None)
FINE, WIDE = (224, 112), (336, 112)

# Typed from the field's public code once more: short side, crop and stride, logit scale, threshold.
SCLIP = {
    "voc21": (336, FINE, 65, 0.1),
    "voc20": (336, FINE, 40, 0),
    "pc60": (336, FINE, 50, 0.1),
    "pc59": (336, FINE, 40, 0),
    "coco-object": (336, FINE, 50, 0.1),
    "coco-stuff": (448, FINE, 40, 0),
    "ade20k": (336, FINE, 40, 0),
    "cityscapes": (560, FINE, 40, 0),
}
NACLIP = {
    "voc21": (336, WHOLE, 40, 0.1),
    "voc20": (336, WHOLE, 40, 0),
    "pc60": (336, FINE, 40, 0.1),
    "pc59": (336, FINE, 40, 0),
    "coco-object": (336, FINE, 40, 0.1),
    "coco-stuff": (336, FINE, 40, 0),
    "ade20k": (336, FINE, 40, 0),
    "cityscapes": (560, FINE, 40, 0),
}
PROXYCLIP = {
    "voc21": (336, WIDE, 40, 0.2),
    "voc20": (336, WIDE, 40, 0),
    "pc60": (336, WIDE, 40, 0.15),
    "pc59": (336, WIDE, 40, 0),
    "coco-object": (336, WIDE, 40, 0.25),
    "coco-stuff": (336, WIDE, 40, 0),
    "ade20k": (448, WIDE, 40, 0),
    "cityscapes": (448, FINE, 40, 0),
}
CLEARCLIP = {
    "voc21": (448, (448, 224), 50, 0.5),
    "voc20": (448, (448, 224), 50, 0),
    "pc60": (448, (448, 224), 50, 0.15),
    "pc59": (448, (448, 224), 50, 0),
    "coco-object": (448, (448, 224), 50, 0.4),
    "coco-stuff": (448, (448, 224), 50, 0),
    "ade20k": (448, (448, 224), 50, 0),
    "cityscapes": (448, (224, 224), 50, 0),
}
# CLIPer: short side, scale, templates, layer, cut; score, background, whether maps are stretched.
CLIPER = {
    "voc21": (336, 50, "cliper", -2, 0.1, (0.5, 0.4, True)),
    "voc20": (336, 70, "cliper", -1, 0.2, (0.1, 1e-4, False)),
    "pc60": (336, 50, None, -2, 0.2, (0.3, 0.3, False)),
    "pc59": (336, 100, "cliper", -2, 0.2, (0.45, 0.45, False)),
    "coco-object": (336, 50, None, -2, 0.1, (0.5, 0.5, False)),
    "coco-stuff": (336, 50, None, -2, 0.2, (0.2, 0.2, False)),
    "ade20k": (336, 50, None, -1, 0.2, (0.2, 0.2, False)),
    "cityscapes": (448, 100, "cliper", -1, 0.35, (0, 1e-4, False)),
}
B16, L14 = "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14"
DINO = "facebook/dino-vitb8"
METACLIP, OPENCLIP = "facebook/metaclip-b16-fullcc2.5b", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
# CLIP, prior, refiner, vocabulary, protocol.
METHODS = {
    "clip": (NACLIP, B16, "clip", "none", "sclip", "mmseg"),
    "maskclip": (SCLIP, B16, "maskclip", "none", "sclip", "mmseg"),
    "sclip": (SCLIP, B16, "sclip", "none", "sclip", "mmseg"),
    "naclip": (NACLIP, B16, "naclip", "pamr", "sclip", "mmseg"),
    "proxyclip": (PROXYCLIP, B16, "proxyclip", "none", "proxyclip", "mmseg"),
    "proxyclip-l14": (PROXYCLIP, L14, "proxyclip", "none", "proxyclip", "mmseg"),
    "clearclip": (CLEARCLIP, B16, "clearclip", "none", "clearclip", "mmseg"),
    "clearclip-l14": (CLEARCLIP, L14, "clearclip", "none", "clearclip", "mmseg"),
    "nerve": (NACLIP, L14, "naclip", "walk", "sclip", "mmseg"),
    "nerve-dino": (NACLIP, L14, "naclip", "walk", "sclip", "mmseg"),
    "metaclip": (CLEARCLIP, METACLIP, "clearclip", "none", "clearclip", "mmseg"),
    "openclip": (CLEARCLIP, OPENCLIP, "clearclip", "none", "clearclip", "mmseg"),
}
# Typed from each system's public code: CLIP, refiner, rule, templates; by data set the words, the
# threshold, the logit scale and the resolution.
SYSTEMS = {
    "gem": (
        ("openai/clip-vit-base-patch16", "none", "stretched", "photo"),
        {
            "voc21": ("plain", 0.85, 40, 448),
            "pc59": ("plain", 0, 40, 448),
            "ade20k": ("plain", 0, 40, 448),
        },
    ),
    "groupvit": (
        ("nvidia/groupvit-gcc-yfcc", "none", "threshold", None),
        {
            "voc21": ("groupvit", 0.95, 40, None),
            "pc60": ("groupvit", 0.35, 40, None),
            "coco-object": ("groupvit", 0.95, 40, None),
        },
    ),
    "clip-diy": (
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "none", "nearest", None),
        {"voc21": ("clip-diy", 0, 1, None), "coco-object": ("clip-diy", 0, 1, None)},
    ),
    "car": (
        ("openai/clip-vit-base-patch16", "none", "painted", None),
        {
            "voc21": ("car", 0, 40, None),
            "pc60": ("car", 0, 40, None),
            "coco-object": ("car", 0, 40, None),
            "ade20k": ("car", 0, 40, None),
        },
    ),
    "ovdiff": (
        ("openai/clip-vit-base-patch16", "none", "threshold", None),
        {"voc21": ("ovdiff", 0, 40, 448)},
    ),
    "iseg": (
        ("openai/clip-vit-base-patch16", "none", "threshold", None),
        {
            "voc21": ("iseg", 0, 40, None),
            "pc60": ("iseg", 0, 40, None),
            "coco-object": ("iseg", 0.45, 40, None),
        },
    ),
    "pixelclip": (
        ("openai/clip-vit-base-patch16", "none", "threshold", None),
        {
            "voc20": ("pixelclip", 0, 40, None),
            "pc59": ("pixelclip", 0, 40, None),
            "coco-stuff": ("plain", 0, 40, None),
            "ade20k": ("plain", 0, 40, None),
            "cityscapes": ("plain", 0, 40, None),
        },
    ),
}


@pytest.mark.parametrize("preset", SYSTEMS)
def test_every_row_of_a_system_is_that_of_its_public_code(preset):
    common, rows = SYSTEMS[preset]
    for dataset, (vocabulary, threshold, scale, resolution) in rows.items():
        found = settings_of(preset, dataset, dataset in BACKGROUND)
        assert (clip_of(preset), found.refiner, found.rule, found.templates) == common
        assert (found.prior, found.vocabulary) == (preset, vocabulary)
        assert (found.threshold, found.logit_scale) == (threshold, scale)
        assert (found.resolution, found.window) == (resolution, None)
    for dataset in SCLIP.keys() - rows:
        with pytest.raises(InputError, match=f"no settings for the data set {dataset}, only for "):
            settings_of(preset, dataset, dataset in BACKGROUND)


# Of CLIP as RNN: mask, confidence, box; visual prompts of things and of stuff.
CAR = {
    "voc21": (0.4, 0.6, 0.4, {"circle", "blur"}, None),
    "coco-object": (0.5, 0.3, 0.5, {"blur", "gray"}, None),
    "pc60": (0.6, 0.25, 0.4, {"circle", "blur"}, {"blur", "gray"}),
    "ade20k": (0.6, 0.25, 0.7, {"blur", "gray"}, {"blur", "gray"}),
}


@pytest.mark.parametrize("dataset", CAR)
def test_clip_as_rnns_rows_are_those_of_its_configurations(dataset):
    mask, confidence, box, visual, stuff = CAR[dataset]
    found = settings_of("car", dataset, dataset in BACKGROUND)
    assert (found.mask, found.confidence, found.box) == (mask, confidence, box)
    assert set(found.visual) == visual
    if stuff:
        assert set(found.visual_stuff) == stuff


# Of iSeg: share of labels, (share, score, crop) of re-weighting, iterations and λ, heads, and what
# follows the names in the prompt.
ISEG_WORDS = "ground, land, grass, tree, building, wall, sky, lake, water"
ISEG = {
    "voc21": (0.6, (0.6, 0.4, 0.8), (8, 0.015), "voc", ISEG_WORDS),
    "pc60": (0.2, (0.2, 0.5, 0.5), (5, 0.002), "all", ""),
    "coco-object": (0.6, (0.3, 0.8, 0.2), (10, 0.2), "all", f"{ISEG_WORDS}, river, sea, railway, "),
}


@pytest.mark.parametrize("dataset", ISEG)
def test_isegs_rows_are_those_of_its_arguments(dataset):
    confidence, reweighting, moves, heads, ending = ISEG[dataset]
    found = settings_of("iseg", dataset, dataset in BACKGROUND)
    assert (found.confidence, found.reweighting) == (confidence, reweighting)
    assert (found.iterations, found.step_size) == moves
    assert found.heads == heads
    assert found.prompt == f"a photograph of {{}} and other object and background{ending}"
    assert found.networks == ()


def test_ovdiff_makes_as_many_images_as_its_public_code():
    assert settings_of("ovdiff", "voc21", True).support == 32
    assert settings_of("ovdiff", "voc21", True, support=2).support == 2
    # Typed from the public code, which has a word a class; 0 is the background.
    plain = classes_of("voc21")
    own = {1: "airplane", 11: "table", 16: "potted plant", 20: "monitor"}
    found = words(Dataset("voc21", plain, True, ()), "ovdiff")
    assert found == tuple((own.get(k, name),) for k, name in enumerate(plain))


def test_what_no_preset_says_is_what_a_prior_has():
    """Written out in both: presets are known to the command line before the priors are."""
    priors = {field.name: field.default for field in dataclasses.fields(PriorConfig)}
    own = {
        field.name: field.default
        for field in dataclasses.fields(Settings)
        if field.name in priors and field.default is not dataclasses.MISSING
    }
    assert own == {name: priors[name] for name in own}
    assert {"step_size", "cut", "visual"} <= own.keys()


def test_one_preset_walks_on_another_graph():
    assert {preset: graph_of(preset) for preset in PRESETS if graph_of(preset)} == {
        "nerve-dino": DINO
    }


@pytest.mark.parametrize("dataset", SCLIP)
@pytest.mark.parametrize("preset", METHODS)
def test_every_row_is_that_of_the_public_code(preset, dataset):
    rows, clip, *names = METHODS[preset]
    found = settings_of(preset, dataset, dataset in BACKGROUND)
    resolution, windows, scale, thresholds = rows[dataset]
    assert [found.prior, found.refiner, found.vocabulary, found.protocol] == names
    assert (found.resolution, (found.window, found.stride)) == (resolution, windows)
    assert found.logit_scale == scale
    assert found.threshold == thresholds
    assert found.score is None
    assert found.area_threshold == (0.1 if (preset, dataset) == ("sclip", "voc21") else 0)
    assert (found.rule, found.templates) == ("threshold", None)
    assert clip_of(preset) == clip


@pytest.mark.parametrize("dataset", CLIPER)
def test_clipers_rows_are_those_of_its_configurations(dataset):
    resolution, scale, templates, layer, cut, rule = CLIPER[dataset]
    for preset, refiner in (("cliper", "none"), ("cliper-diffusion", "cliper")):
        found = settings_of(preset, dataset, dataset in BACKGROUND)
        assert (found.prior, found.refiner, found.vocabulary) == ("cliper", refiner, "cliper")
        assert (found.resolution, found.logit_scale, found.templates) == (
            resolution,
            scale,
            templates,
        )
        assert (found.layer, found.cut) == (layer, cut)
        assert (found.score, found.background, found.stretched) == rule
        assert (found.window, found.threshold) == (None, 0)
        assert clip_of(preset) == L14
    block = "up_blocks.3.attentions.{}.transformer_blocks.0.attn1"
    layers = (block.format(1), block.format(0))
    assert diffusion_of("cliper-diffusion") == (layers, 101)
    assert diffusion_of("cliper") == (None, None)


def test_settings_of_ours_are_said_to_be_ours():
    # Of OVDiff it is the detector.
    ours = ["ovdiff", "nerve", "nerve-dino", "metaclip", "openclip", "fixed"]
    assert [name for name in PRESETS if not by_authors(name)] == ours


def test_fixed_is_one_setting_for_all():
    rows = {settings_of("fixed", dataset, True) for dataset in (*SCLIP, "folder", "tiny")}
    (row,) = rows
    assert (row.resolution, row.window, row.logit_scale, row.threshold) == (None, None, 40, 0.1)
    assert (row.prior, row.refiner, row.vocabulary) == ("naclip", "walk", "plain")
    assert settings_of("fixed", "ade20k", False).threshold == 0
    assert set(PRESETS) == {*METHODS, *SYSTEMS, "cliper", "cliper-diffusion", "fixed"}
    assert "slides give no" in note_of("nerve")


def test_changes_take_the_place_of_the_presets():
    changed = settings_of(
        "naclip", "voc21", True, prior="sclip", window=112, logit_scale=50.0, threshold=0.0
    )
    assert (changed.prior, changed.window, changed.stride) == ("sclip", 112, 56)
    assert (changed.logit_scale, changed.threshold, changed.resolution) == (50, 0, 336)
    unchanged = settings_of("naclip", "voc21", True, prior=None, threshold=None)
    assert unchanged == settings_of("naclip", "voc21", True)


def test_what_makes_no_sense_is_refused():
    cases = [
        ("preset is 'mask'; expected one of clip, maskclip, gem", ("mask", "voc21", True), {}),
        ("only for voc21, voc20.*take the preset fixed", ("naclip", "folder", True), {}),
        ("is under a threshold, and there is none", ("naclip", "voc20", False), {"under": "cat"}),
        ("background is sky; .*rule of its own", ("cliper", "voc21", True), {"under": "sky"}),
        ("rule of its own, with score 0.5", ("cliper", "voc21", True), {"threshold": 0.1}),
        ("labels each pixel by its best", ("clip-diy", "voc21", True), {"threshold": 0.1}),
        ("threshold is 1.5", ("naclip", "voc21", True), {"threshold": 1.5}),
        (
            f"refiner is 'crf'; expected one of {', '.join(REFINERS)}",
            ("naclip", "voc21", True),
            {"refiner": "crf"},
        ),
    ]
    for message, arguments, changes in cases:
        with pytest.raises(InputError, match=message):
            settings_of(*arguments, **changes)


def test_iseg_runs_as_its_authors_ran_it():
    authors = {
        "voc21": (8, 0.015),
        "voc20": (8, 0.015),
        "pc60": (5, 0.002),
        "pc59": (5, 0.002),
        "coco-object": (10, 0.2),
        "ade20k": (8, 0.015),
        "folder": (8, 0.015),
    }
    for dataset, expected in authors.items():
        assert tuple(iseg_of(dataset)[name] for name in ("iterations", "step_size")) == expected


@pytest.mark.parametrize("dataset", SCLIP)
@pytest.mark.parametrize(("preset", "multiple"), [("proxyclip", 56), ("clearclip", 14 * 16)])
def test_a_larger_clip_takes_the_same_settings_and_no_window_is_padded(preset, multiple, dataset):
    background = dataset in BACKGROUND
    larger = settings_of(f"{preset}-l14", dataset, background)
    assert larger == settings_of(preset, dataset, background)
    assert larger.window % multiple == 0
