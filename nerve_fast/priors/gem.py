"""GEM (Bousselham et al.: Grounding Everything, CVPR 2024)."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.priors.layers import merged, on_grid, run, split_heads
from nerve_fast.priors.registry import registered

LAYERS = 6
"""Last layers that have the second path: the authors' ``depth=7`` counts from 1 and reaches six.
Of an encoder with fewer, all."""

ITERATIONS = 1
"""Rounds of grouping before the values are read, as in the authors' code."""


@registered("gem", positions="antialiased")
def gem(
    layers: Sequence[CLIPEncoderLayer], x: Tensor, grid: tuple[int, int], pixels: Tensor
) -> Tensor:
    r"""A second path beside the last layers, of self-self attention.

    In each of them, with ``y`` the layer's normalised input on CLIP's own path, and for each ``p``
    of ``q``, ``k`` and ``v``, rows made unit length in each head:

    .. math:: p \leftarrow \mathrm{normalise}(\mathrm{softmax}(\tau \, p p^\top) \, p), \quad
              o_p = \mathrm{softmax}(\tau \, p p^\top) \, v, \quad
              \tau = \tfrac{1}{N}\textstyle\sum_i \|y_i\| / \sqrt{d}

    The mean of the three ``o_p``, through the output projection, is added to the second path, which
    begins as CLIP's own, keeps its residual and has no MLP. CLIP's own path goes on as it is.

    Position embeddings are brought to other grids with antialiasing, as in the authors' code.

    Arguments and result are those of :data:`~nerve_fast.backbones.clip.ReadOut`.
    """
    x = path = run(layers[:-LAYERS], x)
    for layer in layers[-LAYERS:]:
        attention = layer.self_attn
        y = layer.layer_norm1(x)
        q, k, v = split_heads(
            attention, attention.q_proj(y), attention.k_proj(y), attention.v_proj(y)
        )
        tau = (y.norm(dim=-1).mean(1) * attention.scale)[:, None, None, None]
        summed = sum((_self_self_attention(p, v, tau) for p in (v, k, q)), start=v.new_zeros(()))
        path = path + merged(attention, summed / 3)
        if layer is not layers[-1]:
            x = layer(x, None)
    return on_grid(path, grid)


def _self_self_attention(p: Tensor, v: Tensor, tau: Tensor) -> Tensor:
    p = normalize(p, dim=-1)
    for _ in range(ITERATIONS):
        p = normalize(scaled_dot_product_attention(tau * p, p, p, scale=1.0), dim=-1)
    return scaled_dot_product_attention(tau * p, p, v, scale=1.0)
