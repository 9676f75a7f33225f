"""MaskCLIP (Zhou, Loy, Dai: Extract Free Dense Labels from CLIP, ECCV 2022)."""

from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPEncoderLayer


def maskclip(layer: CLIPEncoderLayer, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The last layer with each token attending to itself only: the value path.

    As in the authors' ViT, the residual and the MLP stay.

    Args:
        layer: CLIP's last encoder layer.
        x: its input, ``(B, 1+N, C)``.
        grid: not used.

    Returns:
        ``(B, 1+N, C)``.
    """
    attention = layer.self_attn
    x = x + attention.out_proj(attention.v_proj(layer.layer_norm1(x)))
    return x + layer.mlp(layer.layer_norm2(x))
