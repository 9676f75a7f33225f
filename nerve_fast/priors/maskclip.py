"""MaskCLIP (Zhou, Loy, Dai: Extract Free Dense Labels from CLIP, ECCV 2022)."""

from collections.abc import Sequence

from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.priors.layers import on_grid, run
from nerve_fast.priors.registry import registered


@registered("maskclip")
def maskclip(
    layers: Sequence[CLIPEncoderLayer], x: Tensor, grid: tuple[int, int], pixels: Tensor
) -> Tensor:
    """The last layer with each token attending to itself only: the value path.

    As in the authors' ViT, the residual and the MLP stay. Their key smoothing and prompt denoising
    come after the similarities and are off where they report plain MaskCLIP; they are not here.

    Arguments and result are those of :data:`~nerve_fast.backbones.clip.ReadOut`.
    """
    *early, last = layers
    x = run(early, x)
    attention = last.self_attn
    x = x + attention.out_proj(attention.v_proj(last.layer_norm1(x)))
    return on_grid(x + last.mlp(last.layer_norm2(x)), grid)
