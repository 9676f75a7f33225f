import math

import pytest
import torch
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoder

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.dino import DINOBackbone
from nerve_fast.priors import METHODS, ProxyCLIP, clip, gem, maskclip, naclip, sclip
from nerve_fast.priors import clearclip as clearclip_read_out
from nerve_fast.priors.gem import LAYERS as GEM_LAYERS
from nerve_fast.priors.maskclip import PublicMaskCLIP
from nerve_fast.tiny import MODELS

GRID = (3, 4)
TOKENS = 1 + GRID[0] * GRID[1]
HEADS = (slice(0, 4), slice(4, 8))
OWN = [name for name in METHODS if name != "proxyclip"]


def encoder_of(layers, generator):
    config = CLIPVisionConfig(
        hidden_size=8, num_attention_heads=2, intermediate_size=16, num_hidden_layers=layers
    )
    config._attn_implementation = "eager"
    encoder = CLIPEncoder(config).double().eval()
    for parameter in encoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
        parameter.requires_grad_(False)
    return encoder


@pytest.fixture
def layers(generator):
    return encoder_of(3, generator).layers


@pytest.fixture
def x(generator):
    return torch.randn(2, TOKENS, 8, generator=generator, dtype=torch.float64)


def before_the_last(layers, x):
    for layer in layers[:-1]:
        x = layer(x, None)
    return x, layers[-1]


def projections(layer, y):
    attention = layer.self_attn
    return attention.q_proj(y), attention.k_proj(y), attention.v_proj(y)


def softmax(logits):
    weights = logits.exp()
    return weights / weights.sum(-1, keepdim=True)


def joined(layer, heads):
    return layer.self_attn.out_proj(torch.cat(heads, dim=-1))


def patches(x):
    return x[:, 1:].reshape(len(x), *GRID, -1)


def with_residual_and_mlp(layer, x, attended):
    x = x + attended
    return x + layer.mlp(layer.layer_norm2(x))


def test_clip_is_the_encoder(generator, x):
    encoder = encoder_of(3, generator)
    expected = encoder(inputs_embeds=x).last_hidden_state
    torch.testing.assert_close(clip(encoder.layers, x, GRID, None), patches(expected))


def test_maskclip_is_the_last_layer_with_each_token_attending_to_itself(layers, x):
    only_self = torch.full((TOKENS, TOKENS), -torch.inf, dtype=x.dtype).fill_diagonal_(0)
    last_input, last = before_the_last(layers, x)
    expected = last(last_input, only_self.expand(2, 1, -1, -1))
    torch.testing.assert_close(maskclip(layers, x, GRID, None), patches(expected))


def test_maskclips_own_network_has_gelu_and_another_epsilon(layers, x):
    def norm(layer_norm, y):
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return y * layer_norm.weight + layer_norm.bias

    token = x
    for number, layer in enumerate(layers):
        q, k, v = projections(layer, norm(layer.layer_norm1, token))
        if number < len(layers) - 1:
            v = torch.cat([softmax(q[..., h] @ k[..., h].mT / 2) @ v[..., h] for h in HEADS], -1)
        token = token + layer.self_attn.out_proj(v)
        hidden = layer.mlp.fc1(norm(layer.layer_norm2, token))
        # GELU by its definition.
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        token = token + layer.mlp.fc2(hidden)
    found = PublicMaskCLIP()(layers, x, GRID, None)
    torch.testing.assert_close(found, patches(token))
    assert not torch.allclose(found, maskclip(layers, x, GRID, None), rtol=1e-3, atol=1e-3)


def test_sclip_adds_the_attention_of_queries_and_of_keys(layers, x):
    last_input, last = before_the_last(layers, x)
    q, k, v = projections(last, last.layer_norm1(last_input))
    heads = []
    for head in HEADS:
        weights = sum(softmax(p[..., head] @ p[..., head].mT / 2) for p in (q, k))
        torch.testing.assert_close(weights.sum(-1), torch.full((2, TOKENS), 2.0).double())
        heads.append(weights @ v[..., head])
    expected = with_residual_and_mlp(last, last_input, joined(last, heads))
    torch.testing.assert_close(sclip(layers, x, GRID, None), patches(expected))


def test_clearclip_is_the_attention_of_queries_and_nothing_else(layers, x):
    last_input, last = before_the_last(layers, x)
    q, _, v = projections(last, last.layer_norm1(last_input))
    heads = [softmax(q[..., head] @ q[..., head].mT / 2) @ v[..., head] for head in HEADS]
    expected = patches(joined(last, heads))
    torch.testing.assert_close(clearclip_read_out(layers, x, GRID, None), expected)


def test_naclip_agrees_with_loops_over_heads_and_patches(layers, x):
    omega = torch.zeros(TOKENS, TOKENS, dtype=x.dtype)
    for i in range(TOKENS - 1):
        for j in range(TOKENS - 1):
            (yi, xi), (yj, xj) = divmod(i, GRID[1]), divmod(j, GRID[1])
            omega[1 + i, 1 + j] = math.exp(-((yi - yj) ** 2 + (xi - xj) ** 2) / (2 * 5.0**2))
    last_input, last = before_the_last(layers, x)
    _, k, v = projections(last, last.layer_norm1(last_input))
    heads = [softmax(k[..., h] @ k[..., h].mT / 2 + omega) @ v[..., h] for h in HEADS]
    expected = patches(joined(last, heads))
    torch.testing.assert_close(naclip(layers, x, GRID, None), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("depth", [2, GEM_LAYERS + 2])
def test_gem_has_a_second_path_beside_the_last_layers(generator, x, depth):
    layers = encoder_of(depth, generator).layers
    own = x
    for layer in layers[: max(depth - 6, 0)]:
        own = layer(own, None)
    path = own
    for layer in layers[max(depth - 6, 0) :]:
        y = layer.layer_norm1(own)
        tau = y.norm(dim=-1).mean(-1)[:, None, None] / 2
        q, k, v = projections(layer, y)
        heads = []
        for head in HEADS:
            read = []
            for p in (q, k, v):
                p = p[..., head] / p[..., head].norm(dim=-1, keepdim=True)
                p = softmax(tau * (p @ p.mT)) @ p
                p = p / p.norm(dim=-1, keepdim=True)
                read.append(softmax(tau * (p @ p.mT)) @ v[..., head])
            heads.append(torch.stack(read).mean(0))
        path = path + joined(layer, heads)
        own = layer(own, None)
    torch.testing.assert_close(gem(layers, x, GRID, None), patches(path))


@pytest.mark.parametrize("name", [name for name in OWN if name != "naclip"])
def test_only_naclip_knows_where_patches_lie(layers, x, generator, name):
    order = torch.randperm(TOKENS - 1, generator=generator)
    moved = torch.cat([x[:, :1], x[:, 1:][:, order]], dim=1)
    found = METHODS[name].read_out(layers, x, GRID, None).flatten(-3, -2)
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(
        METHODS[name].read_out(layers, moved, GRID, None).flatten(-3, -2),
        found[..., order, :],
        **tolerance,
    )


@pytest.mark.parametrize("name", OWN)
def test_images_of_a_batch_do_not_meet(layers, x, name):
    both = METHODS[name].read_out(layers, x, GRID, None)
    single = [METHODS[name].read_out(layers, one[None], GRID, None) for one in x]
    torch.testing.assert_close(both, torch.cat(single, dim=-4), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def base():
    """The configuration of ViT-B/16, with random weights."""
    torch.manual_seed(0)
    config = CLIPConfig(
        vision_config={
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "patch_size": 16,
            "image_size": 224,
        },
        text_config={"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 1},
        projection_dim=512,
    )
    return CLIPBackbone(
        CLIPModel(config),
        CLIPTokenizer.from_pretrained(MODELS / "clip"),
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.25, 0.25, 0.25),
        resample=3,
        source="random",
        cache=None,
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_prior_runs_on_the_base_model(base, proxy, generator, name):
    read_out = METHODS[name].read_out
    grid = (4, 3)
    if name == "proxyclip":
        loaded = DINOBackbone.from_pretrained(proxy, device=base.device, dtype=torch.float32)
        read_out, grid = ProxyCLIP(loaded, base.image_mean, base.image_std), (16, 12)
    pixels = torch.randn(1, 3, 64, 48, generator=generator)
    features = base.patch_features(pixels, read_out)
    assert features.shape == (1, *grid, 512)
    assert features.isfinite().all()
    torch.testing.assert_close(features, normalize(features, dim=-1))
    assert features.flatten(1, 2).std(1).max() > 1e-4
