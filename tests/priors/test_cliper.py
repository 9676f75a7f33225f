import dataclasses

import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoder

from nerve_fast import InputError
from nerve_fast.priors import CLIPer, PriorConfig
from nerve_fast.priors.cliper import fused

TOKENS, HEADS = 13, (slice(0, 4), slice(4, 8))
SETTINGS = PriorConfig("cliper", resolution=56, logit_scale=30.0, layer=-2, cut=0.4)


@pytest.fixture
def layers(generator):
    config = CLIPVisionConfig(
        hidden_size=8, num_attention_heads=2, intermediate_size=16, num_hidden_layers=3
    )
    config._attn_implementation = "eager"
    encoder = CLIPEncoder(config).double().eval().requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
    return encoder.layers


def test_the_early_maps_are_applied_to_what_each_layer_takes(layers, generator):
    x = torch.randn(2, TOKENS, 8, generator=generator, dtype=torch.float64)
    inputs, maps, token = [], [0.0, 0.0], x
    for layer in layers[:-1]:
        y = layer.layer_norm1(token)
        inputs.append(y)
        q, k = layer.self_attn.q_proj(y), layer.self_attn.k_proj(y)
        for i, head in enumerate(HEADS):
            maps[i] = maps[i] + (q[..., head] @ k[..., head].mT / 2).softmax(-1)
        token = layer(token, None)
    inputs.append(token)
    last, expected = layers[-1], []
    for y in inputs:
        v, heads, kept = last.self_attn.v_proj(last.layer_norm1(y)), [], []
        for i, head in enumerate(HEADS):
            maps[i] = maps[i] / maps[i].sum(-2, keepdim=True)
            maps[i] = maps[i] / maps[i].sum(-1, keepdim=True)
            B = (maps[i] + maps[i].mT) / 2
            S = (B - B.mean(-2, keepdim=True)).clamp_min(0)
            kept.append(S / S.sum(-1, keepdim=True))
            heads.append(kept[-1] @ v[..., head])
        expected.append(last.self_attn.out_proj(torch.cat(heads, dim=-1)))
    features, S = fused(layers, x)
    # The maps are summed in float32.
    torch.testing.assert_close(features, torch.stack(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(S.double(), torch.stack(kept, 1), rtol=1e-5, atol=1e-5)


def test_patches_that_are_all_alike_give_numbers(layers):
    features, S = fused(layers, torch.ones(1, TOKENS, 8, dtype=torch.float64))
    assert features.isfinite().all()
    assert S.isfinite().all()


def by_hand(clip, image, foreground, others, config):
    """The maps of words of the foreground, a layer and a patch at a time."""
    with torch.no_grad():
        vision = clip.model.vision_model
        patches = vision.embeddings.patch_embedding(clip.pixels(image)[None])
        grid = patches.shape[-2:]
        first = vision.embeddings.class_embedding.expand(1, 1, -1)
        weight = vision.embeddings.position_embedding.weight
        side = int((len(weight) - 1) ** 0.5)
        own = weight[1:].T.reshape(1, -1, side, side)
        own = interpolate(own, grid, mode="bilinear")[0].flatten(1).T
        x = torch.cat([first, patches.flatten(2).mT], 1) + torch.cat([weight[:1], own])
        features, S = fused(vision.encoder.layers, vision.pre_layrnorm(x))
        features = clip.model.visual_projection(vision.post_layernorm(features))[:, 0, 1:]
        text = clip.encode_words([*foreground, *others], config.prompts)
        text = torch.cat([text, text[: len(foreground)].mean(0, keepdim=True)])
        cosines = torch.nn.functional.cosine_similarity(
            features[:, :, None], text[None, None], dim=-1
        )
        p = (config.logit_scale * cosines).softmax(-1)[..., : len(foreground)]
        chosen = p[config.layer].clone()
        for word in range(len(foreground)):
            chosen[chosen[:, word] < config.cut * chosen[:, word].max(), word] = 0
        p[config.layer] = chosen
        moved = torch.stack(
            [(chosen * S.mean(1)[0, 1:, 1:][:, j : j + 1]).sum(0) for j in range(len(chosen))]
        )
        return (p.mean(0) + moved).T.unflatten(1, grid)


@pytest.mark.parametrize("layer", [-1, -2])
def test_the_head_by_hand(pipe, layer):
    clip, words, others = pipe.prior.clip, ["grass", "ball"], ("sky", "wall")
    image = Image.effect_noise((96, 56), 80).convert("RGB")
    config = dataclasses.replace(SETTINGS, layer=layer, others=others)
    found = CLIPer(clip, config).maps([image], [[word] for word in words])[0]
    expected = by_hand(clip, image, words, others, config)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # Nothing makes them sum to 1.
    assert (found.sum(0) - 1).abs().max() > 0.01


def test_the_background_is_not_in_the_mean_of_the_foreground(pipe):
    clip, image = pipe.prior.clip, Image.effect_noise((96, 56), 80).convert("RGB")
    others = ("sky", "wall")
    config = dataclasses.replace(SETTINGS, background="sky")
    classes = [["sky", "wall"], ["grass"], ["ball"]]
    found = CLIPer(clip, config).maps([image], classes)[0]
    expected = by_hand(clip, image, ["grass", "ball"], others, config)
    torch.testing.assert_close(found[1:], expected, rtol=1e-4, atol=1e-5)


def test_a_label_has_its_best_word_and_probabilities_sum_to_1(pipe):
    prior = CLIPer(pipe.prior.clip, SETTINGS)
    image = Image.effect_noise((96, 56), 80).convert("RGB")
    separate = prior.maps([image], [["grass"], ["ball"], ["water"]])[0]
    together = prior.maps([image], [["grass"], ["ball", "water"]])[0]
    torch.testing.assert_close(together[1], separate[1:].amax(0))
    G = prior([image, image], [["grass"], ["ball", "water"]], prior.view(image.size))
    torch.testing.assert_close(G.sum(1), torch.ones_like(G[:, 0]))
    torch.testing.assert_close(G[0], together / together.sum(0))
    assert torch.equal(G[0], G[1])


def test_settings_of_other_priors_are_refused():
    with pytest.raises(InputError, match="prior layer is -2, which the prior naclip does not read"):
        PriorConfig("naclip", layer=-2)
    with pytest.raises(InputError, match="prior window is 64, which the prior cliper does not"):
        PriorConfig("cliper", window=64)
