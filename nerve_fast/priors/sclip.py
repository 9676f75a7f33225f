"""SCLIP (Wang, Mei, Yuille: Rethinking Self-Attention for Dense Inference, ECCV 2024)."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.priors.layers import merged, on_grid, run, split_heads
from nerve_fast.priors.registry import registered


@registered("sclip")
def sclip(
    layers: Sequence[CLIPEncoderLayer], x: Tensor, grid: tuple[int, int], pixels: Tensor
) -> Tensor:
    r"""The last layer with correlative self-attention.

    .. math:: \left(\mathrm{softmax}(q q^\top / \sqrt{d}) + \mathrm{softmax}(k k^\top / \sqrt{d})
              \right) v

    a sum and not a mean, as in the paper. Residual and MLP stay, as in the authors' code.

    Arguments and result are those of :data:`~nerve_fast.backbones.clip.ReadOut`.
    """
    *early, last = layers
    x = run(early, x)
    attention = last.self_attn
    y = last.layer_norm1(x)
    q, k, v = split_heads(attention, attention.q_proj(y), attention.k_proj(y), attention.v_proj(y))
    attended = scaled_dot_product_attention(q, q, v) + scaled_dot_product_attention(k, k, v)
    x = x + merged(attention, attended)
    return on_grid(x + last.mlp(last.layer_norm2(x)), grid)
