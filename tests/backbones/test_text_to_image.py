import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch.nn.functional import interpolate

from nerve_fast import InputError
from nerve_fast.backbones import text_to_image
from nerve_fast.backbones.attribution import cross_attentions, default_cross_attentions
from nerve_fast.backbones.text_to_image import NEGATIVE, TextToImage

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
TEMPLATE = "A good picture of a {}"


@pytest.fixture(scope="module")
def model(ovdiff_networks):
    return TextToImage.from_pretrained(ovdiff_networks["diffusion"], **CPU)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(text_to_image, "STEPS", 3)


@torch.no_grad()
def made_by_hand(model, prompt, tokens, count, seed):
    """The images of diffusers' own pipeline, and the attention of hooks on projections."""
    seen, handles = {}, []
    for name in cross_attentions(model.pipe.unet):
        layer = model.pipe.unet.get_submodule(name)
        for part in ("to_q", "to_k"):
            key = (name, part)
            handles.append(
                layer.get_submodule(part).register_forward_hook(
                    lambda module, inputs, output, key=key: seen.setdefault(key, []).append(output)
                )
            )
    images = model.pipe(
        prompt,
        negative_prompt=NEGATIVE,
        num_inference_steps=3,
        guidance_scale=8.0,
        num_images_per_prompt=count,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images
    for handle in handles:
        handle.remove()
    total, number = torch.zeros(count, model.grid, model.grid), 0
    for name in cross_attentions(model.pipe.unet):
        heads = model.pipe.unet.get_submodule(name).heads
        pairs = zip(seen[name, "to_q"], seen[name, "to_k"], strict=True)
        for q, k in pairs:
            q, k = (x[count:].unflatten(-1, (heads, -1)) for x in (q, k))
            weights = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
            maps = weights.softmax(-1)[..., tokens].permute(0, 1, 3, 2)
            side = math.isqrt(maps.shape[-1])
            for head in range(heads):
                own = maps[:, head].unflatten(-1, (side, side))
                own = interpolate(own, (model.grid,) * 2, mode="bicubic", align_corners=False)
                total += own.clamp(min=0).mean(1)
                number += 1
    return images, total / number


def test_attribution_is_the_mean_of_all_heads_maps(model):
    images, maps = model.make("ball", [TEMPLATE], 2, 42)
    tokens = model.pipe.tokenizer(TEMPLATE.format("ball")).input_ids
    own = model.pipe.tokenizer("ball", add_special_tokens=False).input_ids
    places = [len(tokens) - 1 - len(own) + number for number in range(len(own))]
    expected, attention = made_by_hand(model, TEMPLATE.format("ball"), places, 2, 42)
    torch.testing.assert_close(maps, attention, rtol=1e-4, atol=1e-7)
    assert maps.std() > 1e-3 * maps.mean()
    assert images.shape == (2, 3, 64, 64)
    rounded = torch.from_numpy(expected).permute(0, 3, 1, 2) * 255
    # Cut off, as the public code's images are when they are saved.
    assert (images - rounded.floor()).abs().max() <= 1
    assert (images == rounded.floor()).double().mean() > 0.99


def test_batches_share_one_generator_and_take_templates_in_turn(model, monkeypatch):
    monkeypatch.setattr(text_to_image, "BATCH", 2)
    seen, asked = [], []
    inner = model.pipe.encode_prompt

    def encode(prompt, *rest, **more):
        asked.append(prompt)
        return inner(prompt, *rest, **more)

    monkeypatch.setattr(model.pipe, "encode_prompt", encode)
    images, maps = model.make("ball", [TEMPLATE, "a {} here"], 5, 42, seen.append)
    assert asked == [TEMPLATE.format("ball"), "a ball here", TEMPLATE.format("ball")]
    assert seen == [2, 2, 1]
    assert (len(images), len(maps)) == (5, 5)
    assert not torch.equal(images[0], images[4])
    again, _ = model.make("ball", [TEMPLATE, "a {} here"], 5, 42)
    assert torch.equal(again, images)
    other, _ = model.make("ball", [TEMPLATE, "a {} here"], 5, 43)
    assert not torch.equal(other, images)


def test_the_words_places_are_its_tokens(model):
    tokenizer = model.pipe.tokenizer
    for word in ("ball", "green ball", "good picture"):
        for template in (TEMPLATE, "a {} in the scene."):
            tokens = tokenizer(template.format(word)).input_ids
            places = model.places(word, template)
            own = tokenizer(word, add_special_tokens=False).input_ids
            assert [tokens[place] for place in places] == own


@torch.no_grad()
def test_features_are_queries_of_a_noised_image(model):
    pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(5))
    generators = [torch.Generator().manual_seed(seed) for seed in (43, 44)]
    found = model.features(pixels, *generators)
    vae, unet = model.pipe.vae, model.pipe.unet
    moments = vae.encode(2 * pixels[None] - 1).latent_dist
    draw = [
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
        for seed in (43, 44)
    ]
    latents = (moments.mean + moments.std * draw[0]) * vae.config.scaling_factor
    schedule = DDPMScheduler.from_config(model.pipe.scheduler.config)
    noisy = schedule.add_noise(latents, draw[1], torch.tensor([200]))
    empty = model.pipe.tokenizer("", padding="max_length", max_length=77, return_tensors="pt")
    prompt = model.pipe.text_encoder(empty.input_ids)[0]
    kept = {}
    for name in model.layers:
        unet.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: kept.__setitem__(name, module.to_q(inputs[0])),
        )
    try:
        unet(noisy, 200, prompt)
    finally:
        for name in model.layers:
            unet.get_submodule(name)._forward_pre_hooks.clear()
    parts = []
    for name in model.layers:
        side = math.isqrt(kept[name].shape[1])
        plane = kept[name][0].T.unflatten(1, (side, side))[None]
        parts.append(interpolate(plane, (16, 16), mode="bilinear", align_corners=False)[0])
    expected = torch.cat(parts).permute(1, 2, 0)
    assert found.shape == (16, 16, model.channels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_layers_are_those_of_the_public_code():
    """Numbers 0, 6 to 12 and 15 of the sixteen of Stable Diffusion 1.5."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    names = cross_attentions(unet)
    assert len(names) == 16
    assert names[6] == "mid_block.attentions.0.transformer_blocks.0.attn2"
    chosen = default_cross_attentions(unet)
    assert chosen == tuple(names[number] for number in (0, *range(6, 13), 15))
    assert names[0] == "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    assert names[15] == "up_blocks.3.attentions.2.transformer_blocks.0.attn2"
    assert sum(unet.get_submodule(name).to_q.out_features for name in chosen) == 7680


def test_what_cannot_be_used_is_named(model, tmp_path):
    model.check("ball", TEMPLATE)
    with pytest.raises(InputError, match="the label 'ball ball .*' takes .* reads 77: shorten it"):
        model.check("ball " * 90, TEMPLATE)
    option = {**CPU, "option": "prior network diffusion"}
    with pytest.raises(InputError, match="prior network diffusion is .*none.*: no such folder"):
        TextToImage.from_pretrained(str(tmp_path / "none"), **option)


@pytest.mark.parametrize("part", ["tokenizer", "context", "scheduler", "vae"])
def test_other_settings_of_the_same_weights_have_another_identity(ovdiff_networks, model, part):
    other = TextToImage.from_pretrained(ovdiff_networks["diffusion"], **CPU)
    if part == "tokenizer":
        other.pipe.tokenizer.add_tokens(["nervefast"])
    elif part == "context":
        other.pipe.tokenizer.model_max_length = 40
    else:
        setting = {"scheduler": "solver_order", "vae": "scaling_factor"}[part]
        getattr(other.pipe, part).register_to_config(**{setting: 1})
    assert other.identity != model.identity


def test_another_network_has_another_identity(ovdiff_networks, model):
    other = TextToImage.from_pretrained(ovdiff_networks["diffusion"], **CPU)
    assert other.identity == model.identity
    other = TextToImage.from_pretrained(ovdiff_networks["diffusion"], **CPU)
    next(other.pipe.unet.parameters()).data += 1
    assert other.identity != model.identity
