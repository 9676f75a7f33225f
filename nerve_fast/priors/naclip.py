"""NACLIP (Hajimiri, Ben Ayed, Dolz: Pay Attention to Your Neighbours, WACV 2025)."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.priors.layers import merged, on_grid, run, split_heads
from nerve_fast.priors.registry import registered

GAUSSIAN_STD = 5.0
"""Standard deviation of the neighbourhood, in patches, as in the paper."""


@registered("naclip")
def naclip(
    layers: Sequence[CLIPEncoderLayer], x: Tensor, grid: tuple[int, int], pixels: Tensor
) -> Tensor:
    r"""The last layer's attention by key–key similarity and distance, and nothing else of it.

    .. math:: \mathrm{softmax}(k k^\top / \sqrt{d} + \omega) \, v, \quad
              \omega_{ij} = \exp(-\|p_i - p_j\|^2 / 2\sigma^2)

    with ``p`` the patches' places on the grid; ω is 0 for the class token. Residual and MLP are
    left out, as in the authors' "reduced" architecture.

    Arguments and result are those of :data:`~nerve_fast.backbones.clip.ReadOut`.
    """
    *early, last = layers
    y = last.layer_norm1(run(early, x))
    attention = last.self_attn
    k, v = split_heads(attention, attention.k_proj(y), attention.v_proj(y))
    omega = gaussian_neighbourhood(grid, y.device, y.dtype)
    return on_grid(merged(attention, scaled_dot_product_attention(k, k, v, attn_mask=omega)), grid)


@functools.lru_cache(maxsize=4)
def gaussian_neighbourhood(
    grid: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """``ω``, ``(1+N, 1+N)``; the last few are kept, as windows of one size follow one another."""
    y, x = (torch.arange(side, device=device, dtype=torch.float32) for side in grid)
    rows = torch.exp(-((y[:, None] - y) ** 2) / (2 * GAUSSIAN_STD**2))
    columns = torch.exp(-((x[:, None] - x) ** 2) / (2 * GAUSSIAN_STD**2))
    return pad(torch.kron(rows, columns), (1, 0, 1, 0)).to(dtype)
