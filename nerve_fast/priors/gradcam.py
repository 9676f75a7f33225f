"""Grad-CAM of CLIP's last layer, spread by its attention, as CLIP-ES and CLIP as RNN have it."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d, normalize
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.priors.layers import merged, on_grid, split_heads

LAYERS = 8
"""The last layers whose attention is averaged."""

BALANCED = 3
"""How often columns, and then rows, of the attention are made to sum to 1."""


@dataclasses.dataclass(frozen=True, eq=False)
class Activations:
    """What CLIP finds in an image before its last layer, and how its patches attend.

    Attributes:
        x: ``(1, 1+N, C)``, what the last layer takes.
        transition: ``(N, N)`` float32, symmetric.
        grid: ``(h, w)`` with ``h·w = N``.
    """

    x: Tensor
    transition: Tensor
    grid: tuple[int, int]


def activations(clip: CLIPBackbone, pixels: Tensor) -> Activations:
    """Run CLIP on ``(1, 3, H, W)`` with position embeddings resampled bilinearly."""
    found = []

    def read_out(
        layers: Sequence[CLIPEncoderLayer], x: Tensor, grid: tuple[int, int], pixels: Tensor
    ) -> Tensor:
        first = max(len(layers) - LAYERS, 0)
        mean = x.new_zeros(x.shape[1] - 1, x.shape[1] - 1, dtype=torch.float32)
        for number, layer in enumerate(layers):
            if number >= first:
                _, weights = _attended(layer, layer.layer_norm1(x))
                mean += weights[0].float().mean(0)[1:, 1:] / (len(layers) - first)
            if number < len(layers) - 1:
                x = layer(x, None)
        found.append(Activations(x, balanced(mean), grid))
        return on_grid(x, grid)

    clip.projected(pixels, read_out, position_filter="bilinear")
    return found[0]


def _attended(layer: CLIPEncoderLayer, normed: Tensor) -> tuple[Tensor, Tensor]:
    """The attention's output, ``(B, 1+N, C)``, and its weights, ``(B, heads, 1+N, 1+N)``."""
    attention = layer.self_attn
    q, k, v = split_heads(
        attention, attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
    )
    weights = (q * attention.head_dim**-0.5 @ k.mT).softmax(-1)
    return merged(attention, weights @ v), weights


def balanced(weights: Tensor) -> Tensor:
    """Attention ``(N, N)`` with columns, then rows, of sum 1, some times, and made symmetric."""
    for _ in range(BALANCED):
        weights = weights / weights.sum(0, keepdim=True)
        weights = weights / weights.sum(1, keepdim=True)
    return (weights + weights.T) / 2


def cams(clip: CLIPBackbone, seen: Activations, text: Tensor, count: int) -> Tensor:
    r"""Grad-CAM of the first ``count`` of some texts.

    With ``A`` the output of the last layer's first normalisation and ``p`` the softmax over texts
    of the mean patch's logits, ``relu(Σ_c mean_patches(∂p_k/∂A_c) A_c)`` brought to 0 to 1.

    Args:
        clip: the network.
        seen: of an image.
        text: embeddings ``(K', E)`` of norm 1.
        count: ``K``, at most ``K'``.

    Returns:
        ``(K, h, w)`` float32.
    """
    layer = clip.model.vision_model.encoder.layers[-1]
    with torch.enable_grad():
        normed = layer.layer_norm1(seen.x).detach().requires_grad_()
        x = seen.x.detach() + _attended(layer, normed)[0]
        x = x + layer.mlp(layer.layer_norm2(x))
        pooled = clip.model.vision_model.post_layernorm(x)[:, 1:].mean(1)
        features = normalize(clip.model.visual_projection(pooled).float(), dim=-1)
        p = (clip.model.logit_scale.exp().float() * features @ text.T).softmax(-1)[0]
        found = []
        for k in range(count):
            (gradient,) = torch.autograd.grad(p[k], normed, retain_graph=True)
            weights = gradient[0, 1:].float().mean(0)
            found.append(normed[0, 1:].detach().float() @ weights)
    return stretched(torch.stack(found).clamp(min=0).unflatten(1, seen.grid))


def stretched(maps: Tensor) -> Tensor:
    """Maps ``(K, h, w)`` brought to 0 to 1, each; those that are the same everywhere are 0."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def spread(seen: Activations, cam: Tensor, threshold: float) -> Tensor:
    """A map ``(h, w)`` spread twice by attention, from the boxes around what is strong in it.

    A box surrounds each 8-connected part above ``threshold`` of the maximum, in levels of 0 to 255,
    without the grid's last row and column, which the authors' boxes leave out.
    """
    inside = boxes(cam, threshold)
    vector = (inside * cam).flatten()
    return (seen.transition @ (seen.transition @ vector)).unflatten(0, seen.grid)


def boxes(cam: Tensor, threshold: float) -> Tensor:
    """1 inside the boxes that :func:`spread` speaks of, 0 elsewhere: ``(h, w)``."""
    height, width = cam.shape
    levels = (255 * cam).floor()
    strong = levels > int(threshold * levels.max().item())
    inside = torch.zeros_like(cam)
    # Exact up to 2²⁴ places; MPS has no float64.
    numbers = torch.arange(1, height * width + 1, device=cam.device, dtype=torch.float32)
    parts = numbers.unflatten(0, (height, width)) * strong
    while True:
        grown = max_pool2d(parts[None], 3, 1, 1)[0] * strong
        if torch.equal(grown, parts):
            break
        parts = grown
    for number in parts.unique():
        if number == 0:
            continue
        rows, columns = (parts == number).nonzero().T
        bottom, right = min(int(rows.max()) + 1, height - 1), min(int(columns.max()) + 1, width - 1)
        inside[int(rows.min()) : bottom, int(columns.min()) : right] = 1
    return inside


def proposals(clip: CLIPBackbone, seen: Activations, text: Tensor, count: int, threshold: float):
    """Maps of the first ``count`` texts from 0 to 1, ``(K, h, w)``: :func:`cams` through spread.

    A class that has no positive part among all texts is looked at among the first ``count`` only.
    """
    maps = cams(clip, seen, text, count)
    if bool((maps.amax((1, 2)) == 0).any()):
        alone = cams(clip, seen, text[:count], count)
        maps = torch.where(maps.amax((1, 2), keepdim=True) == 0, alone, maps)
    return stretched(torch.stack([spread(seen, cam, threshold) for cam in maps]))


def at_pixels(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps ``(K, h, w)`` bilinear at ``size = (H, W)``."""
    return interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
