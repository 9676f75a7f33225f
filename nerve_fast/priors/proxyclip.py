"""ProxyCLIP (Lan et al.: Proxy Attention Improves CLIP, ECCV 2024)."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.backbones.dino import DEFAULT_PROXY, DINOBackbone
from nerve_fast.priors.layers import on_grid, run
from nerve_fast.priors.registry import ACTIVATIONS, Needed, Windows, registered

SHIFT = 1.2
"""``β`` of the paper, for every proxy and data set."""

SCALE = 3.0
"""``γ`` of the paper."""

ROWS = 512
"""Rows of the proxy's similarities that exist at a time."""


def _memory(windows: Windows) -> int:
    """Hidden states of the proxy and values of CLIP, both on the proxy's patches."""
    width = cast("ProxyCLIP", windows.read_out).proxy.model.config.hidden_size
    width += windows.clip.model.config.vision_config.hidden_size
    itemsize = windows.clip.model.dtype.itemsize
    return ACTIVATIONS * windows.count * _cells(windows) * width * itemsize


def _cells(windows: Windows) -> int:
    return math.prod(windows.view.window) // cast("ProxyCLIP", windows.read_out).proxy.patch ** 2


@registered(
    "proxyclip",
    networks={"proxy": Needed("a DINO or DINOv2", DEFAULT_PROXY)},
    memory=_memory,
    cells=_cells,
)
class ProxyCLIP:
    r"""The last layer's attention by how alike another model finds patches, on that model's grid.

    .. math:: A = \gamma \, (x x^\top - \beta \, \overline{x x^\top}), \quad
              \mathrm{softmax}(A \text{ where } A \ge 0) \, v

    with ``x`` the proxy's features of unit length, the mean over all pairs of an image, and ``v``
    CLIP's values, without the class token, bilinear on the proxy's patches; all heads have the same
    attention. Residual and MLP are left out.

    Where this departs from the authors' code: grids are ``h × w`` and not square (there ``J`` is
    taken from the height, and CLIP's grid has its sides the wrong way round); the mean is each
    image's own, as in the paper, and not that of a batch; a patch that is like none, itself
    included, attends to the one most like it, where the code divides 0 by 0; a side that is no
    multiple of the proxy's patch is resized to one, where the code pads with zeros to a multiple of
    56, so that both grids still cover the same pixels. Windows of 224 and 336 are whole patches of
    16, 14 and 8; only what is smaller than a window needs either.

    Args:
        proxy: gives the features.
        image_mean, image_std: CLIP's normalisation, which is undone; ``(3, 1, 1)``.
    """

    def __init__(self, proxy: DINOBackbone, image_mean: Tensor, image_std: Tensor):
        self.proxy = proxy
        self.scale = image_std / proxy.image_std
        self.shift = (image_mean - proxy.image_mean) / proxy.image_std

    def __call__(
        self,
        layers: Sequence[CLIPEncoderLayer],
        x: Tensor,
        grid: tuple[int, int],
        pixels: Tensor,
    ) -> Tensor:
        """Arguments and result are those of :data:`~nerve_fast.backbones.clip.ReadOut`."""
        *early, last = layers
        attention = last.self_attn
        v = on_grid(attention.v_proj(last.layer_norm1(run(early, x))), grid)
        proxied = self.features(pixels)
        finer = tuple(proxied.shape[1:3])
        v = interpolate(v.permute(0, 3, 1, 2), finer, mode="bilinear", align_corners=False)
        attended = proxy_attention(proxied.flatten(1, 2), v.flatten(2).mT)
        return attention.out_proj(attended).unflatten(1, finer)

    def features(self, pixels: Tensor) -> Tensor:
        """The proxy's features of what CLIP sees, ``(B, 3, H, W)``: ``(B, h', w', C')``."""
        patch = self.proxy.patch
        pixels = pixels.float() * self.scale.to(pixels.device) + self.shift.to(pixels.device)
        size = tuple(max(round(side / patch), 1) * patch for side in pixels.shape[-2:])
        if size != tuple(pixels.shape[-2:]):
            pixels = interpolate(pixels, size, mode="bilinear", align_corners=False)
        return self.proxy.features(pixels)


def proxy_attention(x: Tensor, v: Tensor) -> Tensor:
    """Values averaged over what ``x`` finds alike; rows in turn, so that no N × N map is kept.

    Args:
        x: ``(B, N, C')``.
        v: ``(B, N, C)``.

    Returns:
        ``(B, N, C)`` in the dtype of ``v``.
    """
    x = normalize(x.float(), dim=-1)
    # The mean over all pairs of inner products is the mean vector's with itself.
    mean = x.mean(1).square().sum(-1)[:, None, None]
    attended = []
    for rows in x.split(ROWS, dim=1):
        alike = SCALE * (rows @ x.mT - SHIFT * mean)
        least = alike.amax(-1, keepdim=True).clamp_max(0)
        weights = alike.masked_fill(alike < least, -torch.inf).softmax(-1)
        attended.append(weights.to(v.dtype) @ v)
    return torch.cat(attended, dim=1)
