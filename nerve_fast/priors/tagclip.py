"""Labels of an image by TagCLIP (Lin et al.: A Local-to-Global Framework, AAAI 2024)."""

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.priors.gradcam import boxes, stretched
from nerve_fast.priors.layers import merged, split_heads
from nerve_fast.priors.registry import ACTIVATIONS

ALONE = -100.0
"""Added to what a token of the last layer pays to others."""

HIDDEN = -1000.0
"""Added to what the class token of a crop pays to patches that do not show the label."""

SHOWN = 0.5
"""Above which value of a label's map, from 0 to 1, a patch shows it."""


def memory(clip: CLIPBackbone, size: tuple[int, int]) -> int:
    """Bytes that :func:`label_scores` takes of an image of ``size = (H, W)``.

    They are a layer's activations, the logits and the softmax of all heads, and five more maps:
    the heads' mean, the sum over layers, votes, the mask, and what is computed of these. The image
    or a crop has the more tokens.
    """
    vision = clip.model.config.vision_config
    sides = [math.ceil(side / clip.patch) for side in size]
    tokens = 1 + max(math.prod(sides), (clip.image_size // clip.patch) ** 2)
    layer = ACTIVATIONS * tokens * clip.model.dtype.itemsize * vision.hidden_size
    return layer + 4 * (5 + 2 * vision.num_attention_heads) * tokens**2


def label_scores(
    clip: CLIPBackbone,
    image: Image.Image,
    text: Tensor,
    count: int,
    reweighting: Sequence[float],
) -> Tensor:
    r"""How surely each of the first ``count`` of some texts is in an image: ``(count,)`` float32.

    The image's sides are rounded up to whole patches, position embeddings brought there bilinearly.
    Each token of the last layer attends to itself alone. With ``p`` the softmax over texts at the
    patches, at CLIP's own scale, and ``A`` the mean attention of :func:`window_of`'s layers, kept
    where enough layers pay more than their mean, the first maps are ``A p``. From 0 to 1 each, they
    give boxes around what is above their mean (:func:`~nerve_fast.priors.gradcam.boxes`); with
    ``A`` kept in their boxes alone the maps are made again, and a text's score is its largest.

    Then what scores above a share of the range of all maps is looked at once more
    (:func:`crop_probability`), and the score is a sum of both, with weights.

    Args:
        clip: the network.
        image: RGB.
        text: embeddings ``(K, E)`` of norm 1; those after the first ``count`` compete alone.
        count: at least 1.
        reweighting: that share, and the weights of the score and of the crop's probability.
    """
    width, height = (math.ceil(side / clip.patch) * clip.patch for side in image.size)
    pixels = clip.pixels(clip.resized(image, (width, height)))[None]
    seen: list[tuple[Tensor, tuple[int, int]]] = []

    def read_out(layers, x, grid, pixels):
        tokens, affinity = last_alone(layers, x)
        seen.append((affinity, grid))
        return tokens[:, None]

    features = clip.projected(pixels, read_out, position_filter="bilinear")[0, 0, 1:]
    (affinity, grid), scale = seen[0], clip.model.logit_scale.exp().float()
    p = (scale * normalize(features, dim=-1) @ text.T).softmax(-1)
    maps = (affinity @ p).T.unflatten(1, grid)
    maps = torch.stack(
        [
            (affinity @ (box.flatten() * p[:, k])).unflatten(0, grid)
            for k, box in enumerate(_boxes(maps))
        ]
    )
    scores = maps[:count].amax((1, 2))
    share, of_score, of_crop = reweighting
    least = maps.min() + share * (maps.max() - maps.min())
    for k in (scores > least).nonzero()[:, 0].tolist():
        found = crop_probability(clip, pixels, stretched(maps[k : k + 1])[0] > SHOWN, text, k)
        if found is None:
            # As the authors leave off, what follows keeps its score.
            break
        scores[k] = of_score * scores[k] + of_crop * found
    return scores


def chosen(scores: Tensor, share: float) -> list[int]:
    """Which labels score above a share of the range of all, in their order; the best one if none.

    Args:
        scores: ``(K,)``.
        share: from 0 to 1.
    """
    least = scores.min() + share * (scores.max() - scores.min())
    return (scores > least).nonzero()[:, 0].tolist() or [int(scores.argmax())]


def window_of(layers: int) -> range:
    """The layers whose attention is averaged: the last third but the last, 8 to 10 of 12."""
    last = max(layers - 1, 1)
    return range(max(min(2 * layers // 3, last - 1), 0), last)


def last_alone(layers: Sequence[CLIPEncoderLayer], x: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder, in whose last layer tokens attend to themselves, and how patches attend.

    Args:
        layers: of the encoder.
        x: ``(1, 1+N, C)``, what the first of them takes.

    Returns:
        tokens: ``(1, 1+N, C)``.
        affinity: ``(N, N)`` float32, the mean of heads and of :func:`window_of`'s layers, 0 where
            fewer than a third of all layers are above their own mean; the last layer's counts as
            it is before its tokens are told to attend to themselves.
    """
    patches = x.shape[1] - 1
    votes = torch.zeros(patches, patches, dtype=torch.int16, device=x.device)
    mean = torch.zeros(patches, patches, device=x.device)
    window = window_of(len(layers))
    for number, layer in enumerate(layers):
        mask = None
        if number == len(layers) - 1:
            mask = x.new_full((1 + patches,) * 2, ALONE).fill_diagonal_(0)
        x, weights = _attended(layer, x, mask)
        own = weights[1:, 1:]
        votes += own > own.mean()
        if number in window:
            mean += own / len(window)
        # The next layer has one of its own.
        del own, weights
    return x, mean * (votes >= max(len(layers) // 3, 1))


def crop_probability(
    clip: CLIPBackbone, pixels: Tensor, shown: Tensor, text: Tensor, k: int
) -> Tensor | None:
    """The probability of a text among all in the box around its patches, which CLIP sees alone.

    The box, without the grid's last row and column, which the authors' boxes leave out, is brought
    to the size that CLIP was trained at; in all layers the class token attends to itself and to the
    patches that show the text.

    Args:
        clip: the network.
        pixels: of the image, ``(1, 3, H, W)``.
        shown: ``(h, w)`` bool, of its patches.
        text: embeddings ``(K, E)``.
        k: which text.

    Returns:
        A number; ``None`` where the box is empty.
    """
    rows, columns = (shown.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    if not rows:
        return None
    top, bottom = rows[0], min(rows[-1] + 1, shown.shape[0] - 1)
    left, right = columns[0], min(columns[-1] + 1, shown.shape[1] - 1)
    if top >= bottom or left >= right:
        return None
    side, patch = clip.image_size, clip.patch
    cut = pixels[..., top * patch : bottom * patch, left * patch : right * patch]
    cut = interpolate(cut.float(), (side, side), mode="bilinear", align_corners=False)
    inside = shown[None, None, top:bottom, left:right].float()
    inside = interpolate(inside, (side // patch,) * 2, mode="nearest").flatten() > 0

    def read_out(layers, x, grid, pixels):
        mask = x.new_zeros(x.shape[1], x.shape[1])
        mask[0, 1:][~inside] = HIDDEN
        for layer in layers:
            x, _ = _attended(layer, x, mask)
        return x[:, :1, None]

    feature = clip.patch_features(cut.to(pixels), read_out)[0, 0]
    scale = clip.model.logit_scale.exp().float()
    return (scale * feature @ text.T).softmax(-1)[0, k]


def _attended(layer: CLIPEncoderLayer, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """A layer with a mask added to its logits, and the mean of heads of its map without it."""
    attention = layer.self_attn
    y = layer.layer_norm1(x)
    q, k, v = split_heads(attention, attention.q_proj(y), attention.k_proj(y), attention.v_proj(y))
    logits = (q * attention.head_dim**-0.5 @ k.mT).float()
    weights = logits.softmax(-1)
    mean = weights[0].mean(0)
    if mask is not None:
        # No third map of all heads beside these two.
        del weights
        weights = logits.add_(mask).softmax(-1)
    del logits
    x = x + merged(attention, weights.to(v.dtype) @ v)
    return x + layer.mlp(layer.layer_norm2(x)), mean


def _boxes(maps: Tensor) -> list[Tensor]:
    """Of each map, 1 inside the boxes around what is above its mean: ``(h, w)``."""
    unit = stretched(maps)
    return [boxes(one, float(one.mean())) for one in unit]
