"""What the priors share: the layers before those they replace, heads, and the patches' grid."""

from collections.abc import Sequence

from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer


def run(layers: Sequence[CLIPEncoderLayer], x: Tensor) -> Tensor:
    """Tokens ``(B, 1+N, C)`` through layers as they are."""
    for layer in layers:
        x = layer(x, None)
    return x


def split_heads(attention: CLIPAttention, *projected: Tensor) -> list[Tensor]:
    """``(B, 1+N, C)`` as ``(B, heads, 1+N, d)``, each."""
    return [x.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for x in projected]


def merged(attention: CLIPAttention, x: Tensor) -> Tensor:
    """``(B, heads, 1+N, d)`` joined and through the output projection: ``(B, 1+N, C)``."""
    return attention.out_proj(x.transpose(1, 2).flatten(2))


def on_grid(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The patches' tokens of ``(…, 1+N, C)`` in their places: ``(…, h, w, C)``."""
    return x[..., 1:, :].unflatten(-2, grid)
