"""TagCLIP's scores derived once more, with transformers' own attention and a place at a time."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.bench.harness.memory import allocated_on_cpu
from nerve_fast.priors import tagclip
from nerve_fast.tiny import MODELS
from nerve_fast.tiny.scenes import generate


@pytest.fixture(scope="module")
def clip():
    return CLIPBackbone.from_pretrained(
        MODELS / "clip", device=torch.device("cpu"), dtype=torch.float32
    )


@pytest.fixture(scope="module")
def image():
    return generate(961_000, (96, 96))[0].crop((3, 5, 80, 64))


@pytest.fixture(scope="module")
def text(clip):
    words = ["grass", "ball", "sky", "sea", "wall", "road"]
    return clip.encode_words(words, ("a photo of a {}.",))


def embedded(clip, pixels):
    vision = clip.model.vision_model
    patches = vision.embeddings.patch_embedding(pixels)
    weight = vision.embeddings.position_embedding.weight
    side = math.isqrt(len(weight) - 1)
    own = weight[1:].T.reshape(1, -1, side, side)
    own = interpolate(own, patches.shape[-2:], mode="bilinear", align_corners=False)
    x = torch.cat([vision.embeddings.class_embedding[None], patches.flatten(2)[0].T])
    x = vision.pre_layrnorm(x + torch.cat([weight[:1], own[0].flatten(1).T]))
    return x[None], tuple(patches.shape[-2:])


def through(clip, x, masks):
    """Class token and patches in CLIP's space, and each layer's mean attention without a mask."""
    vision, maps = clip.model.vision_model, []
    for layer, mask in zip(vision.encoder.layers, masks, strict=True):
        attention, y = layer.self_attn, layer.layer_norm1(x)
        q, k, v = (
            linear(y)[0].unflatten(-1, (attention.num_heads, -1))
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])
        maps.append(scores.softmax(-1).mean(0))
        mixed = torch.einsum("hij,jhd->ihd", (scores + mask).softmax(-1), v).flatten(1)
        x = x + attention.out_proj(mixed)
        x = x + layer.mlp(layer.layer_norm2(x))
    features = clip.model.visual_projection(vision.post_layernorm(x))[0]
    return features / features.norm(dim=-1, keepdim=True), maps


def box_by_hand(plane):
    """1 inside boxes around 8-connected parts above the mean, but for the last row and column."""
    unit = (plane - plane.min()) / (plane.max() - plane.min())
    levels = (255 * unit).int()
    strong = {
        at for at in np.ndindex(*plane.shape) if levels[at] > int(unit.mean() * int(levels.max()))
    }
    inside = torch.zeros_like(plane)
    while strong:
        part, edge = [], [strong.pop()]
        while edge:
            y, x = edge.pop()
            part.append((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & strong
            strong -= near
            edge += near
        rows, columns = zip(*part, strict=True)
        bottom, right = (
            min(max(edges) + 1, length - 1)
            for edges, length in zip((rows, columns), plane.shape, strict=True)
        )
        inside[min(rows) : bottom, min(columns) : right] = 1
    return inside


def scores_by_hand(clip, image, text, count, share, of_score, of_crop):
    scale, patch = clip.model.logit_scale.exp(), clip.patch
    size = [math.ceil(side / patch) * patch for side in image.size]
    pixels = clip.pixels(image.resize(size, Image.Resampling.BICUBIC))[None]
    x, grid = embedded(clip, pixels)
    tokens = x.shape[1]
    alone = -100 * (1 - torch.eye(tokens))
    layers = len(clip.model.vision_model.encoder.layers)
    features, maps = through(clip, x, [torch.zeros(1)] * (layers - 1) + [alone])
    maps = [one[1:, 1:] for one in maps]
    votes = sum((one > one.mean()).int() for one in maps)
    # Of twelve layers the third last to the last but one, and four votes.
    affinity = maps[-2] * (votes >= 1)
    p = (scale * features[1:] @ text.T).softmax(1)
    first = affinity @ p
    refined = torch.stack(
        [
            (affinity * box_by_hand(first[:, k].reshape(grid)).flatten()) @ p[:, k]
            for k in range(len(text))
        ]
    )
    scores = refined[:count].amax(1)
    least = refined.min() + share * (refined.max() - refined.min())
    looked = [k for k in range(count) if scores[k] > least]
    for k in looked:
        plane = refined[k].reshape(grid)
        shown = (plane - plane.min()) / (plane.max() - plane.min()) > 0.5
        rows, columns = (torch.where(shown.any(axis))[0] for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        bottom = min(int(rows[-1]) + 1, grid[0] - 1)
        right = min(int(columns[-1]) + 1, grid[1] - 1)
        if top == bottom or left == right:
            break
        cut = pixels[..., top * patch : bottom * patch, left * patch : right * patch]
        cut = interpolate(cut, (clip.image_size,) * 2, mode="bilinear")
        x, own = embedded(clip, cut)
        mask = torch.zeros(x.shape[1], x.shape[1])
        for number in range(x.shape[1] - 1):
            y, z = divmod(number, own[1])
            place = y * (bottom - top) // own[0] + top, z * (right - left) // own[1] + left
            if not shown[place]:
                mask[0, 1 + number] = -1000
        features, _ = through(clip, x, [mask] * layers)
        found = (scale * features[0] @ text.T).softmax(0)[k]
        scores[k] = of_score * scores[k] + of_crop * found
    return scores, looked


@pytest.mark.parametrize("settings", [(0.6, 0.4, 0.8), (0.05, 0.5, 0.5)])
@torch.no_grad()
def test_scores_are_those_of_tagclip_step_by_step(clip, image, text, settings):
    expected, looked = scores_by_hand(clip, image, text, 4, *settings)
    assert looked
    found = tagclip.label_scores(clip, image, text, 4, settings)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert found.std() > 1e-3


@pytest.mark.parametrize("size", [(320, 240), (40, 32)])
@torch.no_grad()
def test_scores_take_what_was_planned(clip, image, text, size):
    """Of an image of 1,201 tokens, and of one whose crops have more tokens than itself."""
    image = image.resize(size)
    taken = allocated_on_cpu(lambda: tagclip.label_scores(clip, image, text, 4, (0.05, 0.5, 0.5)))
    planned = tagclip.memory(clip, size[::-1])
    assert taken <= planned <= 4 * taken


def test_of_twelve_layers_the_ninth_to_the_eleventh_count():
    assert [*tagclip.window_of(12)] == [8, 9, 10]
    assert all(len(tagclip.window_of(layers)) for layers in range(1, 40))


def test_labels_score_above_a_share_of_the_range_or_are_the_best():
    scores = torch.tensor([0.5, 1.0, 0.0, 0.6])
    assert tagclip.chosen(scores, 0.5) == [1, 3]
    assert tagclip.chosen(scores, 0.0) == [0, 1, 3]
    assert tagclip.chosen(scores, 1.0) == [1]
    assert tagclip.chosen(torch.tensor([0.3]), 0.6) == [0]


def test_a_box_that_leaves_nothing_has_no_probability(clip, image, text):
    pixels = torch.zeros(1, 3, 24, 32)
    for place in (slice(0, 3), slice(3, 4)), (slice(2, 3), slice(0, 4)):
        shown = torch.zeros(3, 4, dtype=torch.bool)
        shown[place] = True
        assert tagclip.crop_probability(clip, pixels, shown, text, 0) is None
    nowhere = torch.zeros(3, 4, dtype=torch.bool)
    assert tagclip.crop_probability(clip, pixels, nowhere, text, 0) is None


class Dtypes(TorchDispatchMode):
    """Keeps the dtypes of what is made within it."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.seen.add(result.dtype)
        return result


@torch.no_grad()
def test_nothing_is_in_float64_which_mps_lacks(clip, image, text):
    with Dtypes() as found:
        tagclip.label_scores(clip, image, text, 4, (0.05, 0.5, 0.5))
    assert torch.float32 in found.seen
    assert torch.float64 not in found.seen
