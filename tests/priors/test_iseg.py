"""iSeg's maps derived once more, with diffusers' networks and an attention processor."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch.nn.functional import interpolate
from transformers import CLIPTextModel, CLIPTokenizer

from nerve_fast import InputError
from nerve_fast.priors import ISegPrior, PriorConfig, load_prior
from nerve_fast.priors import iseg as iseg_file
from nerve_fast.priors.crossattention import HEADS, averaged_in_clusters
from nerve_fast.priors.tagclip import chosen, label_scores
from nerve_fast.tiny import MODELS
from nerve_fast.tiny.scenes import generate

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
CLASSES = [["sky"], ["grass", "lawn"], ["background"], ["ball"]]
SIDE = 128
"""Small, for speed: cross-attentions are on 4 × 4 and on 8 × 8, the self-attention on 16 × 16."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(iseg_file, "SIDE", SIDE)


@pytest.fixture(scope="module")
def image():
    return generate(961_000, (96, 96))[0].crop((3, 5, 80, 64))


@pytest.fixture(scope="module")
def loaded(systems):
    config = PriorConfig(
        "iseg",
        networks={"diffusion": str(systems["diffusion"])},
        background="background",
        templates="photo",
        confidence=0.0,
    )
    return load_prior(config, str(MODELS / "clip"), **CPU)


@pytest.fixture(scope="module")
def make(loaded):
    """The prior with the networks that were loaded once, and with other settings."""

    def make(**settings):
        config = dataclasses.replace(loaded.config, **settings)
        return ISegPrior(loaded.clip, loaded.diffusion, config)

    return make


class Recorder:
    """An attention of queries, keys and values written out, which keeps its maps."""

    def __init__(self, kept, name):
        self.kept, self.name = kept, name

    def __call__(self, attn, x, encoder_hidden_states=None, **_):
        other = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            linear(y)[0].unflatten(-1, (attn.heads, -1))
            for linear, y in ((attn.to_q, x), (attn.to_k, other), (attn.to_v, other))
        )
        weights = (torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
        self.kept[self.name] = weights
        return attn.to_out[0](torch.einsum("hij,jhd->ihd", weights, v).flatten(1))[None]


def attention_by_hand(folder, image, text, places):
    """Maps of all layers, by name, with the tokens at some places of the prompt enhanced."""
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    kept = {}
    for name, module in unet.named_modules():
        if name.endswith((".attn1", ".attn2")):
            module.set_processor(Recorder(kept, name))
    ids = tokenizer(
        text, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    states = encoder(ids)[0].clone()
    for place in places:
        states[:, place] *= 1.6
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)[None]
    pixels = interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
    latents = vae.encode(2 * pixels - 1).latent_dist.mean * vae.config.scaling_factor
    torch.manual_seed(1101)
    noisy = scheduler.add_noise(latents, torch.randn_like(latents), torch.tensor([100]))
    unet(noisy, 100, states)
    return kept


def maps_by_hand(kept, names_places, heads, iterations, step_size):
    block = "{}_blocks.{}.attentions.{}.transformer_blocks.0.attn2"
    coarse = [block.format("down", 2, i) for i in (0, 1)]
    coarse += [block.format("up", 1, i) for i in (0, 1, 2)]
    fine = [block.format("down", 1, 1), *(block.format("up", 2, i) for i in (0, 1))]
    total = 0
    for number, (layers, weight, side) in enumerate(((coarse, 0.7, 4), (fine, 0.3, 8))):
        maps = torch.cat([kept[name] for name in layers])
        maps = maps if heads is None else maps[list(heads[number])]
        mean = maps.mean(0).T
        shares = (mean / mean.sum(1, keepdim=True)).reshape(1, -1, side, side)
        total = total + weight * interpolate(shares, (16, 16), mode="bilinear")[0]
    total = averaged_in_clusters(total).flatten(1)
    A = kept["up_blocks.3.attentions.1.transformer_blocks.0.attn1"][1:3].mean(0).double()
    A = A / A.amax(0)
    A = (A + step_size * torch.log10(math.e * A)).clamp(min=0)
    A = A / A.sum(1, keepdim=True)
    found = []
    for places in names_places:
        g = torch.stack([total[place] for place in places]).double().mean(0)
        for _ in range(iterations):
            g = g - g.min()
            g = A @ (g / g.sum())
        g = interpolate(g.reshape(1, 1, 16, 16), (SIDE, SIDE), mode="bilinear")[0, 0]
        found.append((g - g.min()) / (g.max() - g.min()))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("heads", "threshold", "step_size"), [("all", 0.0, 0.015), ("voc", 0.45, 0.2)]
)
@torch.no_grad()
def test_maps_are_those_of_iseg_step_by_step(make, systems, image, heads, threshold, step_size):
    said = {"ball": "red [ball]", "sky": "blue sky"}
    prior = make(
        heads=heads, threshold=threshold, step_size=step_size, iterations=3, said=said,
        others=("sea", "wall"),
    )  # fmt: skip
    labels = ["sky", "grass", "ball"]
    text = prior.clip.encode_words([*labels, "sea", "wall"], prior.config.prompts)
    scores = label_scores(prior.clip, image, text, 3, (0.6, 0.4, 0.8))
    found = [labels[k] for k in chosen(scores, 0.0)]
    assert len(found) > 1
    # Those that have a name of their own come first, in the order in which they were given.
    order = [name for name in ("ball", "sky", "grass") if name in found]
    tokenizer = prior.tokenizer
    text, places, counted = "a photograph of", [], []
    for number, label in enumerate(order):
        text += " and" * bool(number)
        for word in {"ball": "red ball", "sky": "blue sky"}.get(label, label).split():
            start = len(tokenizer(text).input_ids) - 1
            text += f" {word}"
            if word != "red":
                counted += range(start, len(tokenizer(text).input_ids) - 1)
        places.append(counted)
        counted = []
    text += " and other object and background"
    enhanced = [place for own in places for place in own]
    kept = attention_by_hand(systems["diffusion"], image, text, enhanced)
    maps = maps_by_hand(kept, places, HEADS[heads], 3, step_size)
    size = image.size[::-1]
    planes = torch.zeros(4, *size, dtype=torch.float64)
    for label, plane in zip(order, maps, strict=True):
        plane = interpolate(plane[None, None], size, mode="bilinear")[0, 0]
        plane = (plane - plane.min()) / (plane.max() - plane.min())
        planes[[words[0] for words in CLASSES].index(label)] = plane
    if threshold:
        # Next to the threshold float32 may say otherwise.
        near = ((planes - threshold).abs() < 1e-3).any(0)
        planes = torch.where(planes < threshold, 0, planes)
        planes[2] = (planes.sum(0) == 0).double()
    else:
        near = torch.zeros(size, dtype=torch.bool)
        planes[2] = (1 - planes.amax(0)) ** 2
    given = prior.maps([image], CLASSES)[0].double()
    torch.testing.assert_close(given[:, ~near], planes[:, ~near], rtol=0, atol=2e-3)
    assert near.double().mean() < 0.05
    assert planes.flatten(1).std(1).max() > 0.1


def test_probabilities_are_those_of_the_square(make, image):
    prior = make()
    p = prior.probabilities([image], CLASSES)
    assert p.shape == (1, 4, SIDE, SIDE)
    torch.testing.assert_close(p.sum(1), torch.ones(1, SIDE, SIDE))
    again = prior([image], CLASSES, prior.view(image.size))
    torch.testing.assert_close(again[0], p[0])


def test_without_a_background_labels_compete_alone(make, image):
    labels = [words for words in CLASSES if words != ["background"]]
    with_one, without = (
        make(background=name).maps([image], CLASSES if name else labels)[0]
        for name in ("background", None)
    )
    torch.testing.assert_close(without, with_one[[0, 1, 3]])


def test_names_that_leave_no_room_are_left_out(make, image):
    prior = make()
    names = [f"{letter}{number} ball" for letter in "abcdefgh" for number in range(8)]
    found, maps = prior._found(image, names)
    assert 1 < len(found) < len(names) - 1
    assert len(maps) == len(found)
    text = prior._text(names)
    scores = label_scores(prior.clip, image, text, len(names), (0.6, 0.4, 0.8))
    assert scores[found].min() >= scores.sort(descending=True).values[len(found) - 1]


def test_what_does_not_fit_is_said(make):
    prior = make()
    prior.check_labels(CLASSES)
    with pytest.raises(InputError, match=r"label 'ball ball.*fit into the 77 tokens"):
        make(prompt="a " * 80 + "{}").check_labels([["ball " * 14]])
    for label in ("[]", "[ ]"):
        with pytest.raises(InputError, match=r"the label '\[ ?\]' has no tokens"):
            prior.check_labels([["sky"], [label]])
    config = {"networks": {"diffusion": str(MODELS / "diffusion")}}
    with pytest.raises(InputError, match="layer"):
        load_prior(PriorConfig("iseg", **config), str(MODELS / "clip"), **CPU)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reweighting": 5}, "prior reweighting is 5; expected three numbers"),
        ({"reweighting": (True, 1, 1)}, "prior reweighting has True; expected a number, 0 or more"),
        ({"reweighting": (1, 2)}, "prior reweighting is .* expected three numbers"),
        ({"reweighting": (1, 2, -1)}, "prior reweighting has -1; expected a number, 0 or more"),
        ({"step_size": float("nan")}, "prior step_size has nan"),
        ({"step_size": True}, "prior step_size has True"),
        ({"iterations": True}, "prior iterations is True; expected a whole number, 0 or more"),
        ({"said": {"a": "[]"}}, r"prior said calls 'a' '\[\]', of which nothing counts"),
        ({"said": {"a": "red [ ] ball"}}, "prior said calls 'a' .*, of which nothing counts"),
        ({"said": {"a": ""}}, "prior said calls 'a' '', of which nothing counts"),
        ({"iterations": 1.5}, "prior iterations is 1.5; expected a whole number, 0 or more"),
        ({"heads": "coco"}, "prior heads is 'coco'; expected one of all, voc"),
        ({"prompt": "a photograph"}, "prior prompt is 'a photograph'; expected a text with {} in"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PriorConfig("iseg", **settings)


def test_it_keeps_to_what_it_says(make, image, loaded):
    prior = make()
    again = load_prior(loaded.config, str(MODELS / "clip"), **CPU)
    assert prior.identity == again.identity
    assert prior.identity != make(iterations=7).identity
    assert PriorConfig("iseg", said={"a": "b"}) == PriorConfig("iseg", said=[["a", "b"]])
    for said in ({"a": 1}, 5, [5], ["ab"], "ab"):
        with pytest.raises(TypeError, match="prior said is .*expected a dictionary from words to"):
            PriorConfig("iseg", said=said)
    view = prior.view(image.size)
    assert prior.encoded_memory(view, 2) == 2 * 3 * 77 * 59
    assert prior.memory(view, 1, 4) > 4 * (SIDE // 8) ** 4
