"""CLIP as it is (Radford et al.: Learning Transferable Visual Models, ICML 2021)."""

from collections.abc import Sequence

from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.priors.layers import on_grid, run
from nerve_fast.priors.registry import registered


@registered("clip")
def clip(
    layers: Sequence[CLIPEncoderLayer], x: Tensor, grid: tuple[int, int], pixels: Tensor
) -> Tensor:
    """Every layer as it is: the baseline that the others are held against.

    Arguments and result are those of :data:`~nerve_fast.backbones.clip.ReadOut`.
    """
    return on_grid(run(layers, x), grid)
