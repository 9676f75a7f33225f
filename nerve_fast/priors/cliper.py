"""CLIPer's early-layer fusion (Sun et al.: CLIPer, ICCV 2025), without its diffusion part."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.priors.layers import merged, on_grid, split_heads
from nerve_fast.priors.registry import Windows, registered


def _memory(windows: Windows) -> int:
    """Return the bytes of one layer and of five maps of all heads."""
    vision = windows.clip.model.config.vision_config
    maps = 20 * windows.count * vision.num_attention_heads * (1 + windows.patches) ** 2
    return 2 * vision.num_hidden_layers * windows.hidden + maps


@registered("cliper", memory=_memory)
def cliper(
    layers: Sequence[CLIPEncoderLayer], x: Tensor, grid: tuple[int, int], pixels: Tensor
) -> Tensor:
    r"""The last layer's attention with the sum of the maps before it, and nothing else of it.

    It is applied to what each layer takes, normalised as that layer does (the last one's as it is),
    which makes L features of a patch; their similarities are averaged. Each head keeps its own map:

    .. math:: A = \textstyle\sum_{l<L} \mathrm{softmax}(q_l k_l^\top / \sqrt{d}), \quad
              A \leftarrow \text{columns, then rows, of sum 1}, \quad
              B = (A + A^\top) / 2, \quad
              S_{ij} \propto \max(B_{ij} - \tfrac{1}{1+N}\textstyle\sum_i B_{ij}, 0)

    with rows of ``S`` of sum 1. Residual and MLP of the last layer are left out.

    As in the authors' code, which normalises ``A`` in place, its columns and rows are made to sum
    to 1 once more for each of the L features: the last one's is very nearly doubly stochastic.
    The authors average probabilities where here similarities are, and add those of one layer again,
    cut at a share of their maximum and moved by ``S``: a prior has similarities only.

    Arguments and result are those of :data:`~nerve_fast.backbones.clip.ReadOut`: ``(L, B, …)``.
    """
    *early, last = layers
    inputs, summed = [], x.new_zeros((), dtype=torch.float32)
    for layer in early:
        attention = layer.self_attn
        y = layer.layer_norm1(x)
        inputs.append(y)
        q, k, v = split_heads(
            attention, attention.q_proj(y), attention.k_proj(y), attention.v_proj(y)
        )
        weights = torch.softmax(q @ k.mT * attention.scale, dim=-1, dtype=torch.float32)
        summed = summed + weights
        x = x + merged(attention, weights.to(v.dtype) @ v)
        x = x + layer.mlp(layer.layer_norm2(x))
    inputs.append(x)

    attention = last.self_attn
    features = []
    for y in inputs:
        (v,) = split_heads(attention, attention.v_proj(last.layer_norm1(y)))
        summed = summed / summed.sum(-2, keepdim=True)
        summed = summed / summed.sum(-1, keepdim=True)
        symmetric = (summed + summed.mT) / 2
        above = (symmetric - symmetric.mean(-2, keepdim=True)).clamp_min(0)
        features.append(merged(attention, normalize(above, p=1, dim=-1).to(v.dtype) @ v))
    return on_grid(torch.stack(features), grid)
