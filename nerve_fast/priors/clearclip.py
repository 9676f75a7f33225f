"""ClearCLIP (Lan et al.: Decomposing CLIP Representations for Dense Inference, ECCV 2024)."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.priors.layers import merged, on_grid, run, split_heads
from nerve_fast.priors.registry import registered


@registered("clearclip", padded=True)
def clearclip(
    layers: Sequence[CLIPEncoderLayer], x: Tensor, grid: tuple[int, int], pixels: Tensor
) -> Tensor:
    r"""The last layer's attention by query–query similarity, and nothing else of it.

    .. math:: \mathrm{softmax}(q q^\top / \sqrt{d}) \, v

    Residual and MLP are left out: that they carry the noise is the paper's point. Under the
    protocol ``mmseg`` windows get zeros on all sides to whole patches, as in the authors' code.

    Arguments and result are those of :data:`~nerve_fast.backbones.clip.ReadOut`.
    """
    *early, last = layers
    y = last.layer_norm1(run(early, x))
    attention = last.self_attn
    q, v = split_heads(attention, attention.q_proj(y), attention.v_proj(y))
    return on_grid(merged(attention, scaled_dot_product_attention(q, q, v)), grid)
