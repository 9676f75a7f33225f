import functools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity, interpolate

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.imaging.densecrf import densecrf
from nerve_fast.priors import CaR, PriorConfig, car, gradcam, load_prior
from nerve_fast.priors.car import BACKGROUND
from nerve_fast.priors.prompting import prompted
from nerve_fast.tiny import MODELS
from nerve_fast.tiny.scenes import generate

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
NAMES = ["background", "grass", "ball", "sky"]
CLASSES = [[name] for name in NAMES]


CLIP = str(MODELS / "clip")


def loaded(**settings):
    config = PriorConfig("car", networks={"judge": CLIP}, **settings)
    return CaR(clip(), clip(), config)


@functools.cache
def clip():
    return CLIPBackbone.from_pretrained(CLIP, **CPU)


@pytest.fixture(scope="module")
def image():
    return generate(961_000, (64, 64))[0].crop((3, 5, 40, 34))


@functools.cache
def text_of(clip, prompt):
    tokens = clip.tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        found = clip.model.text_projection(clip.model.text_model(**tokens).pooler_output)[0]
    return found / found.norm()


def patch_outputs(clip, image):
    """Each layer's attention by transformers' own, and the last layer's input."""
    patch = clip.patch
    size = tuple(math.ceil(side / patch) * patch for side in image.size)
    pixels = clip.pixels(image.resize(size, Image.Resampling.BICUBIC))[None]
    vision = clip.model.vision_model
    weight = vision.embeddings.position_embedding.weight
    side = math.isqrt(len(weight) - 1)
    own = weight[1:].T.reshape(1, -1, side, side)
    grid = (size[1] // patch, size[0] // patch)
    own = interpolate(own, grid, mode="bilinear", align_corners=False)[0].flatten(1).T
    patches = vision.embeddings.patch_embedding(pixels).flatten(2)[0].T
    x = torch.cat([vision.embeddings.class_embedding[None], patches])
    x = vision.pre_layrnorm(x + torch.cat([weight[:1], own]))[None]
    attention, states = [], []
    for layer in vision.encoder.layers:
        states.append(x)
        q, k = (
            linear(layer.layer_norm1(x))[0].unflatten(-1, (layer.self_attn.num_heads, -1))
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])
        attention.append(scores.softmax(-1).mean(0)[1:, 1:])
        x = layer(x, None)
    return grid, states[-1], torch.stack(attention[-8:]).mean(0)


def proposals_by_hand(clip, image, texts, count, threshold):
    grid, before, weights = patch_outputs(clip, image)
    vision, model = clip.model.vision_model, clip.model
    last = vision.encoder.layers[-1]
    for _ in range(3):
        weights = torch.diag(1 / weights.sum(0)).T @ weights.T
        weights = weights.T
        weights = torch.diag(1 / weights.sum(1)) @ weights
    transition = (weights + weights.T) / 2
    transition = transition @ transition

    def probability(patches, k):
        normed = torch.cat([last.layer_norm1(before)[:, :1], patches[None]], 1)
        mixed = last.self_attn(normed, None)[0]
        x = before + mixed
        x = x + last.mlp(last.layer_norm2(x))
        feature = model.visual_projection(vision.post_layernorm(x)[0, 1:].mean(0))
        logits = torch.stack([cosine_similarity(feature, text, dim=0) for text in texts])
        return (model.logit_scale.exp() * logits).softmax(0)[k]

    patches = last.layer_norm1(before)[0, 1:].detach()
    found = []
    for k in range(count):
        gradient = torch.autograd.functional.jacobian(lambda a, k=k: probability(a, k), patches)
        cam = (patches * gradient.mean(0)).sum(1).clamp(min=0)
        cam = ((cam - cam.min()) / (cam.max() - cam.min())).reshape(grid)
        levels = (255 * cam).int()
        strong = {
            (y, x)
            for y, x in np.ndindex(*grid)
            if levels[y, x] > int(threshold * int(levels.max()))
        }
        inside = torch.zeros(grid)
        while strong:
            part, edge = set(), [strong.pop()]
            while edge:
                y, x = edge.pop()
                part.add((y, x))
                for near in [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                    if near in strong:
                        strong.remove(near)
                        edge.append(near)
            rows, columns = zip(*part, strict=True)
            bottom = min(max(rows) + 1, grid[0] - 1)
            right = min(max(columns) + 1, grid[1] - 1)
            inside[min(rows) : bottom, min(columns) : right] = 1
        refined = (transition * inside.flatten()) @ cam.flatten()
        refined = (refined - refined.min()) / (refined.max() - refined.min())
        refined = interpolate(refined.reshape(1, 1, *grid), image.size[::-1], mode="bilinear")
        found.append(refined[0, 0])
    return torch.stack(found).detach()


def test_proposals_are_spread_grad_cams(image):
    prior = loaded()
    texts = [text_of(prior.clip, name) for name in NAMES[1:]]
    texts += [text_of(prior.clip, f"a clean origami {name}.") for name in BACKGROUND]
    expected = proposals_by_hand(prior.clip, image, texts, 3, 0.4)
    seen = prior._seen(image)
    maps = gradcam.proposals(prior.clip, seen, torch.stack(texts), 3, 0.4)
    found = gradcam.at_pixels(maps, image.size[::-1])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert expected.std() > 0.05


def scores_by_hand(judge, image, maps, names, prior):
    total = torch.zeros(len(names), len(names))
    side = judge.image_size
    for row, cam in enumerate(maps):
        one = prompted(image, (cam > prior.config.mask).numpy(), prior.config.visual)
        short = min(one.size)
        size = [side * edge // short for edge in one.size]
        one = one.resize(size, Image.Resampling.BICUBIC)
        left, top = (round((edge - side) / 2) for edge in size)
        pixels = judge.pixels(one.crop((left, top, left + side, top + side)))[None]
        vision = judge.model.vision_model
        with torch.no_grad():
            states = vision(pixels, output_hidden_states=True).hidden_states
            feature = judge.model.visual_projection(vision.post_layernorm(states[-2][0, 0]))
        for template in prior.config.prompts:
            texts = torch.stack([text_of(judge, template.format(name)) for name in names])
            cosines = cosine_similarity(feature, texts)
            total[row] += (judge.model.logit_scale.exp() * cosines).softmax(0).detach()
    return total.softmax(1).diag()


@pytest.mark.parametrize("confidence", [0.0, 0.36, 1.0])
def test_labels_leave_until_all_stay(image, confidence):
    prior = loaded(background="background", confidence=confidence)
    names, wording, before = NAMES[1:], "{}", 0
    others = [text_of(prior.clip, f"a clean origami {name}.") for name in BACKGROUND]
    while True:
        texts = [text_of(prior.clip, wording.format(name)) for name in names] + others
        maps = proposals_by_hand(prior.clip, image, texts, len(names), 0.4)
        scores = scores_by_hand(prior.judge, image, maps, names, prior)
        staying = [name for name, score in zip(names, scores, strict=True) if score > confidence]
        staying = staying or [names[int(scores.argmax())]]
        if len(staying) == before:
            break
        names, wording, before = staying, "a clean origami {}.", len(staying)
    maps = torch.cat([1 - maps.amax(0, keepdim=True), maps]).clamp(min=1e-5)
    colours = np.asarray(image).astype(np.float32) - [122.675, 116.669, 104.008]
    colours = np.trunc(colours).astype(np.int64).astype(np.uint8)
    best = densecrf(torch.from_numpy(colours).permute(2, 0, 1), maps / maps.sum(0)).argmax(0)
    expected = torch.tensor([0, *(NAMES.index(name) for name in names)])[best]
    found = prior([image], CLASSES, prior.view(image.size))[0]
    torch.testing.assert_close(found.sum(0), torch.ones(image.size[::-1]))
    assert (found.argmax(0) == expected).double().mean() > 0.995


def test_stuff_is_found_apart_and_things_are_painted_over_it(image):
    prior = loaded(stuff=("grass", "sky"), visual_stuff=("gray",))
    found = prior.maps([image], CLASSES[1:])[0]
    seen = prior._seen(image)
    stuff = prior._segmented(image, seen, ["grass", "sky"], ["ball"], ("gray",))
    things = prior._segmented(image, seen, ["ball"], BACKGROUND, ("circle", "blur"))
    expected = torch.zeros_like(found)
    for y, x in np.ndindex(*found.shape[1:]):
        if things[y, x]:
            expected[1, y, x] = 1
        elif stuff[y, x]:
            expected[{1: 0, 2: 2}[int(stuff[y, x])], y, x] = 1
    assert torch.equal(found, expected)
    p = prior.probabilities([image], CLASSES[1:])
    torch.testing.assert_close(p.sum(1), torch.ones(1, *found.shape[1:]))


def test_where_a_round_proposes_nothing_the_proposals_before_are_taken(image, monkeypatch):
    prior = loaded(background="background", confidence=1.0)
    seen, names = prior._seen(image), NAMES[1:]
    size = image.size[::-1]
    monkeypatch.setattr(prior, "_scores", lambda *_: torch.tensor([0.1, 0.9, 0.3])[: rounds[-1]])
    first, rounds = torch.zeros(3, *(side // 8 for side in size)), []
    first[0, :, :2] = first[1, :, 2:] = 1

    def proposed(clip, seen, text, count, threshold):
        rounds.append(count)
        return first if count == 3 else torch.zeros_like(first[:1])

    monkeypatch.setattr(car, "proposals", proposed)
    found = prior._segmented(image, seen, names, BACKGROUND, ("blur",))
    maps = gradcam.at_pixels(first, size)
    assert rounds == [3, 1]
    assert set(found.unique().tolist()) == {0, 2}
    assert (found[maps[1] == 1] == 2).double().mean() > 0.9
    assert (found[maps[0] == 1] == 0).all()


def test_in_bfloat16_it_finds_the_same(image):
    exact = loaded(background="background", templates="photo")
    rough = load_prior(exact.config, CLIP, device=torch.device("cpu"), dtype=torch.bfloat16)
    found = []
    for prior in (exact, rough):
        text = prior.clip.encode_words(NAMES[1:], ("{}",))
        found.append(gradcam.proposals(prior.clip, prior._seen(image), text, 3, 0.4))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0.1)
    assert (found[1] - found[0]).abs().mean() < 0.01
    assert found[0].std() > 0.05
    labels = [prior.maps([image], CLASSES)[0].argmax(0) for prior in (exact, rough)]
    assert (labels[0] == labels[1]).double().mean() > 0.95


def test_it_keeps_to_what_it_says(image):
    prior = loaded(background="background")
    assert prior.identity == load_prior(prior.config, CLIP, **CPU).identity
    assert prior.identity != loaded().identity
    view = prior.view(image.size)
    assert prior.encoded_memory(view, 1) == 3 * 29 * 37
    assert prior.memory(view, 1, 4) > 4 * 4 * 29 * 37
    with pytest.raises(ValueError, match="prior box is 2; expected a number from 0 to 1"):
        loaded(box=2)
    with pytest.raises(ValueError, match="prior visual"):
        loaded(visual=("arrow",))
