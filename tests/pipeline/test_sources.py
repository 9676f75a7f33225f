"""Graphs other than the diffusion model's: the DINOs, and a user's own class."""

import json
import sys

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
)

import nerve_fast as nf
from nerve_fast.backbones.dino import DINOBackbone
from nerve_fast.backbones.source import GraphFeatures
from nerve_fast.cli.main import main
from nerve_fast.imaging.images import to_tensor
from nerve_fast.imaging.tiling import Tiling
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.tiny import MODELS
from nerve_fast.tiny.scenes import generate

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "patch_size": 8,
    "image_size": 64,
}
KINDS = {
    "vit": lambda: ViTModel(ViTConfig(**SIZES), add_pooling_layer=False),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES)),
    "registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES)),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, num_register_tokens=2)),
}
POINTS = {"here": [(5, 6)], "there": [(90, 60)]}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp(request.param)
    KINDS[request.param]().save_pretrained(out)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (out / "preprocessor_config.json").write_text(json.dumps(settings))
    return out


@pytest.fixture(scope="module")
def image():
    return generate(960_003, (72, 104))[0]


def dino(folder, **options):
    return DINOBackbone.from_pretrained(
        folder, device=torch.device("cpu"), dtype=torch.float32, **options
    )


def attention_inputs(source, pixels, layer):
    """Queries and keys as the attention itself compares them, seen where it hands them on."""
    from torch.nn import functional

    seen = []
    original = functional.scaled_dot_product_attention

    def spy(q, k, *given, **more):
        seen.append((q, k))
        return original(q, k, *given, **more)

    functional.scaled_dot_product_attention = spy
    try:
        source.features(pixels)
    finally:
        functional.scaled_dot_product_attention = original
    return seen[layer]


@pytest.mark.parametrize("layer", [-1, 0])
def test_they_are_what_the_layers_attention_compares(folder, image, layer):
    source = dino(folder, layer=layer)
    graph = source.queries_and_keys([image], (104, 72), [None])
    assert graph.grid == (9, 13)
    assert graph.q.shape == (1, 2, 9 * 13, 16)
    assert (source.heads, source.head_dim, source.unit) == (2, 16, 8)
    pixels = ((to_tensor(image) - source.image_mean) / source.image_std)[None]
    q, k = attention_inputs(source, pixels, layer)
    torch.testing.assert_close(graph.q, q[:, :, -9 * 13 :], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(graph.k, k[:, :, -9 * 13 :], rtol=1e-4, atol=1e-5)


def test_tiles_join_to_the_grid_of_the_whole(folder, image):
    source = dino(folder)
    tiling = Tiling.of((72, 104), 64, 16, source.multiple)
    assert len(tiling) > 1
    graph = source.queries_and_keys([image], (104, 72), [None], tiling=tiling, batch_size=2)
    assert graph.grid == (9, 13)
    assert torch.isfinite(graph.q).all()


def test_a_layer_that_is_not_there_is_refused(folder):
    with pytest.raises(nf.InputError, match="layer is 3; expected a whole number from -3 to 2"):
        dino(folder, layer=3)


def test_identities_tell_weights_and_layers_apart(folder):
    one, other = dino(folder), dino(folder, layer=0)
    assert one.identity == dino(folder).identity
    assert one.identity != other.identity
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    changed = dino(folder)
    with torch.no_grad():
        next(changed.model.parameters()).add_(1)
    assert changed.identity != one.identity


def test_a_pipeline_of_seeds_loads_neither_clip_nor_diffusion(folder, image, monkeypatch):
    load = nf.NervePipeline.from_pretrained  # imports the module, whichever test comes first
    monkeypatch.setitem(sys.modules, "nerve_fast.backbones.diffusion", None)
    pipe = load(clip=False, graph=folder, device="cpu")
    out = pipe(image, points=POINTS)
    assert out.labels == ("here", "there")
    assert out.label_map[6, 5] == 0
    assert out.label_map[60, 90] == 1
    with pytest.raises(nf.InputError, match="labels are given, and this pipeline has no prior"):
        pipe(image, ["cat"])


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_laws_of_seeds(folder, image, normalization):
    pipe = nf.NervePipeline.from_pretrained(clip=False, graph=folder, device="cpu")
    features = pipe.encode(image)
    config = nf.NerveConfig(normalization=normalization)
    out = pipe(features, points=POINTS, config=config)
    for number, ((x, y),) in enumerate(POINTS.values()):
        assert out.label_map[y, x] == number
    # More seeds in the same token weigh the same.
    more = {**POINTS, "here": [*POINTS["here"], (6, 6), (5, 5)]}
    twice = pipe(features, points=more, config=config)
    assert torch.equal(out.walked, twice.walked)
    # Without a step no seed reaches anything: its label has the pixels of its token alone.
    alone = pipe(features, points=POINTS, config=config.replace(steps=0))
    assert (alone.walked.sum(0) > 0).sum() == len(POINTS)
    assert (alone.label_map == -1).float().mean() > 0.9


def test_words_walk_on_its_graph(folder, image):
    pipe = nf.NervePipeline.from_pretrained(
        clip=MODELS / "clip", graph=folder, device="cpu", config=nf.NerveConfig(steps=3)
    )
    out = pipe(image, ["grass", "water"])
    assert out.plan.grid == (8, 12)
    assert out.label_map.shape == (72, 104)


def test_segment_takes_it_from_the_command_line(folder, image, tmp_path, capsys):
    image.save(tmp_path / "photo.png")
    arguments = ["segment", str(tmp_path / "photo.png"), "--labels", "grass; water"]
    arguments += ["--clip", str(MODELS / "clip"), "--graph", str(folder), "--device", "cpu"]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "photo.labels.png").exists()


def test_a_diffusion_model_as_graph_is_named():
    with pytest.raises(nf.InputError, match="which is a diffusion model; pass it as diffusion"):
        nf.NervePipeline.from_pretrained(clip=False, graph=MODELS / "diffusion", device="cpu")


class Colours:
    """A user's own source: no registration, and no more than the protocol."""

    device = torch.device("cpu")
    dtype = torch.float32
    unit = multiple = 4
    native_size = 64
    identity = "mean colours"

    def queries_and_keys(
        self, images, size, generators, *, tiling=None, batch_size=1, dtype=None, advance=None
    ):
        grid = (size[1] // self.unit, size[0] // self.unit)
        tokens = [
            adaptive_avg_pool2d(to_tensor(image.resize(size)) * 2 - 1, grid).flatten(1).T
            for image in images
        ]
        q = torch.stack(tokens)[:, None]
        return GraphFeatures(q, q, grid)

    def tile_memory(self, tile):
        return 16 * tile[0] * tile[1]


def test_a_users_own_class_is_a_graph(image):
    pipe = nf.NervePipeline.from_pretrained(clip=False, graph=Colours())
    out = pipe(image, points=POINTS)
    assert out.plan.grid == (16, 23)
    assert set(out.label_map.unique().tolist()) <= {0, 1}
    features = pipe.encode(image)
    assert torch.equal(pipe(features, points=POINTS).label_map, out.label_map)


class Halves(nf.Prior):
    """A user's own prior."""

    identity = "halves"

    def probabilities(self, encoded, classes):
        maps = torch.full((len(encoded), len(classes), 2, 2), 0.1)
        maps[:, 0, :, 0] = maps[:, 1, :, 1] = 0.9
        return maps / maps.sum(1, keepdim=True)


def test_a_users_own_prior_is_one(image):
    pipe = nf.NervePipeline.from_pretrained(prior=Halves(), graph=Colours())
    out = pipe(image, ["left", "right"], config=nf.NerveConfig(steps=0))
    assert (out.label_map[:, :40] == 0).all()
    assert (out.label_map[:, 64:] == 1).all()
    features = pipe.encode(image)
    assert torch.equal(
        pipe(features, ["left", "right"]).walked, pipe(image, ["left", "right"]).walked
    )
