"""MaskCLIP (Zhou, Loy, Dai: Extract Free Dense Labels from CLIP, ECCV 2022)."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.backbones.clip import layer_normed
from nerve_fast.priors.layers import merged, on_grid, run, split_heads
from nerve_fast.priors.registry import registered


class PublicMaskCLIP:
    """:func:`maskclip` as the authors' own network computes it from CLIP's weights.

    That is mmsegmentation's ViT, whose activation is GELU where CLIP was trained with its quick
    approximation, and whose normalisations have an ε of 1e-6 in place of 1e-5.
    """

    eps = 1e-6

    def __call__(
        self,
        layers: Sequence[CLIPEncoderLayer],
        x: Tensor,
        grid: tuple[int, int],
        pixels: Tensor,
    ) -> Tensor:
        """Arguments and result are those of :data:`~nerve_fast.backbones.clip.ReadOut`."""
        for layer in layers:
            attention = layer.self_attn
            y = layer_normed(layer.layer_norm1, x, self.eps)
            (v,) = split_heads(attention, attention.v_proj(y))
            if layer is not layers[-1]:
                q, k = split_heads(attention, attention.q_proj(y), attention.k_proj(y))
                v = scaled_dot_product_attention(q, k, v)
            x = x + merged(attention, v)
            y = layer_normed(layer.layer_norm2, x, self.eps)
            x = x + layer.mlp.fc2(gelu(layer.mlp.fc1(y)))
        return on_grid(x, grid)


@registered("maskclip", positions="bicubic", public=PublicMaskCLIP())
def maskclip(
    layers: Sequence[CLIPEncoderLayer], x: Tensor, grid: tuple[int, int], pixels: Tensor
) -> Tensor:
    """The last layer with each token attending to itself only: the value path.

    As in the authors' ViT, the residual and the MLP stay. Their key smoothing and prompt denoising
    come after the similarities and are off where they report plain MaskCLIP; they are not here.
    Under the protocol ``mmseg`` it is computed as in their network: :class:`PublicMaskCLIP`.

    Arguments and result are those of :data:`~nerve_fast.backbones.clip.ReadOut`.
    """
    *early, last = layers
    x = run(early, x)
    attention = last.self_attn
    x = x + attention.out_proj(attention.v_proj(last.layer_norm1(x)))
    return on_grid(x + last.mlp(last.layer_norm2(x)), grid)
