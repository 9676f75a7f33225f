"""Models in their true configurations with random weights: shapes and stamina."""

import copy
import json
import sys

import pytest
import torch
from PIL import Image
from random_checkpoints import Checkpoints
from small_data_sets import build

from nerve_fast.backbones import text_to_image as text_to_image_module
from nerve_fast.backbones.diffusion import DEFAULT_DIFFUSION
from nerve_fast.bench.harness.full_size import full_size_pipe
from nerve_fast.bench.harness.memory import Memory
from nerve_fast.cli import main as cli
from nerve_fast.evaluation.method import needs_graph
from nerve_fast.evaluation.presets import (
    PRESETS,
    Settings,
    clip_of,
    datasets_of,
    graph_of,
    settings_of,
)
from nerve_fast.evaluation.segmenter import Segmenter
from nerve_fast.priors import ENTRIES, OVDiff, PriorConfig, load_prior
from nerve_fast.priors.ovdiff import prior as ovdiff_prior
from nerve_fast.priors.ovdiff.crops import crops


@pytest.fixture(scope="module")
def pipe(own_cache):
    pipe = copy.copy(full_size_pipe())
    full_size_pipe.cache_clear()
    pipe.backend = "reference"
    return pipe


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(512, 512), (768, 512)])
def test_the_pipeline_runs_at_full_size(pipe, width, height):
    image = Image.effect_noise((width, height), 60).convert("RGB")
    out = pipe(image, ["cat", "dog", "grass"])
    assert pipe.graph.layers == tuple(
        f"up_blocks.3.attentions.{i}.transformer_blocks.0.attn1" for i in range(3)
    )
    assert out.label_map.shape == (height, width)
    assert out.prior.shape == (3, height // 8, width // 8)
    torch.testing.assert_close(out.probabilities.sum(0), torch.ones(height, width))


WITHOUT_A_PRESET = {"siglip": ["--preset", "fixed", "--prior", "siglip", "--refiner", "none"]}
"""Priors that no preset has, and how they are evaluated."""

SIZE = (160, 120)
"""Width and height of an image; priors see it at sizes of their own."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """VOC2012 with one image; no other data set has fewer words."""
    root = tmp_path_factory.mktemp("voc")
    build("voc21", root, [SIZE])
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", [*sorted({*PRESETS} - {"ovdiff"}), *WITHOUT_A_PRESET])
def test_a_method_runs_in_its_true_configuration(own_cache, checkpoints, root, tmp_path, name):
    preset = "fixed" if name in WITHOUT_A_PRESET else name
    dataset = "voc20" if "voc20" in (datasets_of(preset) or ["voc20"]) else "voc21"
    settings = settings_of(preset, dataset, dataset == "voc21")
    prior = name if name in WITHOUT_A_PRESET else settings.prior
    hub_id = ENTRIES[name].clip if name in WITHOUT_A_PRESET else clip_of(preset)
    flags = ["--clip", checkpoints.folder(hub_id)]
    if name not in WITHOUT_A_PRESET and needs_graph(settings.refiner):
        graph = graph_of(preset)
        flags += ["--graph" if graph else "--diffusion"]
        flags += [checkpoints.folder(graph or DEFAULT_DIFFUSION)]
    networks = [f"{name}={source}" for name, source in checkpoints.networks(prior).items()]
    flags += ["--prior-network", *networks] if networks else []
    command = ["evaluate", "--dataset", dataset, "--root", root, "-o", tmp_path, "--device", "cpu"]
    command += WITHOUT_A_PRESET.get(name, ["--preset", preset])
    assert cli.main([str(word) for word in (*command, *flags)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["complete"]
    assert 0 <= results["miou"] <= 1
    assert results["run"]["settings"]["prior"] == prior


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dataset", "size"),
    [
        ("groupvit", "voc21", (448, 597)),
        ("clip-diy", "voc21", (256, 256)),
        ("pixelclip", "voc20", (64, 64)),
        ("siglip", "voc20", (21, 28)),
    ],
)
def test_a_systems_maps_are_on_its_own_grid(own_cache, checkpoints, name, dataset, size):
    background = ["background"] if dataset == "voc21" else []
    words = {"background": "background"} if background else {}
    config = PriorConfig(name, networks=checkpoints.networks(name), **words)
    cpu = {"device": torch.device("cpu"), "dtype": torch.float32}
    prior = load_prior(config, checkpoints.folder(ENTRIES[name].clip), **cpu)
    classes = [[word] for word in [*background, "cat", "dog", "grass"]]
    image = Image.effect_noise((500, 375), 60).convert("RGB")
    assert prior.maps([image], classes).shape[-2:] == size
    settings = Settings(name, "none", "plain")
    if name not in WITHOUT_A_PRESET:
        settings = settings_of(name, dataset, bool(background))
    found = Segmenter(prior, settings, classes, bool(background))(image)
    assert found.shape == (375, 500)
    assert found.min() >= 0
    assert found.max() < len(classes)


class Halves:
    """A detector that finds the upper and the lower half of any image."""

    def __call__(self, image):
        upper = torch.zeros(image.height, image.width)
        upper[: image.height // 2] = 1
        return [upper, 1 - upper]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ovdiff_makes_prototypes_and_labels_an_image(own_cache, checkpoints, monkeypatch):
    monkeypatch.setattr(text_to_image_module, "STEPS", 1)
    cpu = {"device": torch.device("cpu"), "dtype": torch.bfloat16}
    config = PriorConfig(
        "ovdiff",
        networks=checkpoints.networks("ovdiff", ("diffusion", "dino")),
        background="background",
        support=1,
    )
    clip = checkpoints.folder(ENTRIES["ovdiff"].clip)
    prior = OVDiff.load(config, clip, detector=Halves(), **cpu)
    text_to_image = prior.diffusion
    assert (text_to_image.size, text_to_image.grid, text_to_image.channels) == (512, 64, 7680)
    assert len(text_to_image.layers) == 9
    # Each crop takes what the whole takes.
    monkeypatch.setattr(ovdiff_prior, "crops", lambda size, side: crops(size, side)[-1:])
    classes = [["background"], ["cat"]]
    image = Image.effect_noise((375, 375), 60).convert("RGB")
    # Read once, weights from files take no more of the process's memory.
    assert prior.identity
    memory = Memory("cpu")
    prior.check_labels(classes)
    making = memory.peak()[0]
    (planned_for_all,) = prior.support.memory().values()
    # What the SAM would take is no part of it.
    channels = text_to_image.channels * text_to_image.grid**2
    alone = max(text_to_image.making_memory(1), 8 * channels)
    print(f"making: {making:,} bytes of {alone:,}, with a SAM {planned_for_all:,}")
    memory = Memory("cpu")
    found = Segmenter(prior, settings_of("ovdiff", "voc21", True), classes, True)(image)
    view = prior.view(image.size)
    planned = prior.memory(view, 1, len(classes))
    calling = memory.peak()[0]
    print(f"calling: {calling:,} bytes of {planned:,}")
    assert found.shape == (375, 375)
    assert making <= alone
    assert calling <= planned
