"""What presets of whole systems make of an image, with small random networks."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from nerve_fast import InputError
from nerve_fast.backbones import sam, text_to_image
from nerve_fast.evaluation import EvaluationSettings, ModelSettings, method
from nerve_fast.evaluation.presets import PRESETS
from nerve_fast.imaging.images import to_tensor
from nerve_fast.refiners.pamr import PAMR, pamr
from nerve_fast.tiny import MODELS

SIZE = (61, 45)
SMALL = {"prior_resolution": 96}


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """VOC2012 with one image, whose labels are two classes and some background."""
    root = tmp_path_factory.mktemp("voc")
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_000033\n")
    draw = np.random.default_rng(5)
    colours = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    image = Image.fromarray(np.ascontiguousarray(colours[: SIZE[1], : SIZE[0]]))
    image.save(root / "JPEGImages/2007_000033.jpg", quality=95)
    labels = np.zeros(SIZE[::-1], dtype=np.uint8)
    labels[:20], labels[20:30] = 3, 15
    Image.fromarray(labels).convert("P").save(root / "SegmentationClass/2007_000033.png")
    return root


@pytest.fixture(scope="module")
def ways(systems, ovdiff_networks):
    """The network of images and words of each preset, and its further ones."""
    return {
        "groupvit": (systems["groupvit"], {}),
        "clip-diy": (MODELS / "clip", {"dino": systems["dino"], "found": systems["found"]}),
        "ovdiff": (MODELS / "clip", ovdiff_networks),
    }


def segmenter_of(ways, voc, preset, dataset, **changes):
    clip, networks = ways.get(preset, (MODELS / "clip", {}))
    asked = EvaluationSettings(
        dataset=dataset,
        root=voc,
        preset=preset,
        models=ModelSettings(clip=str(clip)),
        prior_networks={name: str(source) for name, source in networks.items()} or None,
        **changes,
    )
    found = method.dataset_asked_for(asked)
    settings = method.settings_asked_for(asked, found)
    segmenter, _ = method.load_segmenter(asked, found, settings, "cpu")
    image, _ = found.read(found.samples[0])
    return segmenter, image


def test_groupvits_maps_are_brought_to_pixels(ways, voc):
    segmenter, image = segmenter_of(ways, voc, "groupvit", "voc21", threshold=0.05)
    maps = segmenter.prior.maps([image], segmenter.classes)
    expected = interpolate(maps, SIZE[::-1], mode="bilinear")[0].argmax(0)
    assert (segmenter(image) == expected).double().mean() > 0.999
    assert segmenter.prior.config.background == "background"
    assert segmenter.prior.config.threshold == 0.05


def test_ovdiffs_cosines_are_brought_to_pixels_and_refined_before(ways, voc, monkeypatch):
    monkeypatch.setattr(text_to_image, "STEPS", 1)
    monkeypatch.setattr(sam, "POINTS", 2)
    changes = {"prior_support": 1, "prior_resolution": 64}
    segmenter, image = segmenter_of(ways, voc, "ovdiff", "voc21", **changes)
    maps = segmenter.prior.maps([image], segmenter.classes)
    at_pixels = interpolate(maps, SIZE[::-1], mode="bilinear", align_corners=False)[0]
    expected = at_pixels.clamp(min=0).argmax(0)
    assert (segmenter(image) == expected).double().mean() > 0.999
    assert segmenter.prior.config.background == "background"
    segmenter, image = segmenter_of(ways, voc, "ovdiff", "voc21", refiner="pamr", **changes)
    assert segmenter.refiner == PAMR(10, (1, 2, 4, 8, 12, 24), at="maps")
    seen = to_tensor(image.resize(maps.shape[:1:-1], Image.Resampling.LANCZOS))
    moved = pamr(seen, maps[0], 10, (1, 2, 4, 8, 12, 24))
    at_pixels = interpolate(moved[None], SIZE[::-1], mode="bilinear", align_corners=False)[0]
    expected = at_pixels.clamp(min=0).argmax(0)
    assert (segmenter(image) == expected).double().mean() > 0.999


def test_clip_diys_labels_are_those_of_the_place_above_and_left(ways, voc):
    segmenter, image = segmenter_of(ways, voc, "clip-diy", "voc21")
    labels = segmenter.prior.maps([image], segmenter.classes)[0].argmax(0)
    found = segmenter(image)
    for y in range(SIZE[1]):
        for x in range(SIZE[0]):
            assert found[y, x] == labels[int(y * 256 / SIZE[1]), int(x * 256 / SIZE[0])]
    assert segmenter.prior.config.background == "background"


@pytest.mark.parametrize("threshold", [0.0, 0.85])
def test_gems_maps_are_stretched_and_its_background_has_no_words(ways, voc, threshold):
    segmenter, image = segmenter_of(ways, voc, "gem", "voc21", threshold=threshold, **SMALL)
    assert segmenter.prior.view(image.size).size == (96, 96)
    words = [word for (word,) in segmenter.classes[1:]]
    heat = []
    for plane in segmenter.prior.similarities([image], words)[0]:
        plane = interpolate(plane[None, None], (96, 96), mode="bilinear")[0, 0]
        heat.append((plane - plane.min()) / (plane.max() - plane.min()))
    at_pixels = interpolate(torch.stack(heat)[None], SIZE[::-1], mode="bilinear")[0]
    largest, expected = at_pixels.max(0)
    expected = torch.where(largest < threshold, 0, expected + 1)
    found = segmenter(image)
    assert (found == expected).double().mean() > 0.999
    assert ((found == 0).any()) == (threshold > 0)


def test_other_refiners_follow_a_system_too(ways, voc):
    segmenter, image = segmenter_of(ways, voc, "groupvit", "voc21", refiner="pamr")
    assert segmenter(image).shape == SIZE[::-1]
    segmenter, image = segmenter_of(ways, voc, "gem", "voc21", refiner="pamr", **SMALL)
    assert segmenter(image).shape == SIZE[::-1]


def test_what_a_system_does_not_read_is_refused(ways, voc):
    for change, said in (
        ({"prior_resolution": 100}, "prior_resolution is 100, which the prior groupvit does not"),
        ({"logit_scale": 3.0}, "logit_scale is 3.0, which the prior groupvit does not read"),
    ):
        with pytest.raises(InputError, match=said):
            segmenter_of(ways, voc, "groupvit", "voc21", **change)
    with pytest.raises(InputError, match="the preset clip-diy labels each pixel by its best class"):
        segmenter_of(ways, voc, "clip-diy", "voc21", threshold=0.5)


def test_the_graph_is_the_presets_unless_one_is_named():
    def graph(preset, **models):
        return method.graph(
            EvaluationSettings(dataset="tiny", preset=preset, models=ModelSettings(**models))
        )

    assert graph("nerve-dino") == "facebook/dino-vitb8"
    assert graph("nerve-dino", graph="my/dino") == "my/dino"
    assert graph("nerve-dino", diffusion="my/diffusion") is None
    assert graph("nerve-dino", models="tiny") is None
    assert {graph(preset) for preset in PRESETS if preset != "nerve-dino"} == {None}
