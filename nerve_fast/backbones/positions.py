"""A vision transformer's position embeddings, for images of another size than it was trained at."""

import math
from typing import Any

from torch import Tensor, cat
from torch.nn.functional import interpolate

from nerve_fast.numerics import upcast

FILTERS: dict[str, dict[str, Any]] = {
    "bicubic": {"mode": "bicubic"},
    "bilinear": {"mode": "bilinear"},
    "antialiased": {"mode": "bicubic", "antialias": True},
}
"""Ways to bring position embeddings to another grid, as arguments of ``interpolate``."""


def resampled_positions(
    positions: Tensor, grid: tuple[int, int], offset: float = 0.0, filter: str = "bicubic"
) -> Tensor:
    """Position embeddings brought to another grid; at their own they stay as they are.

    DINO's authors ask for grids a tenth of a patch larger than they are and keep what fits, so that
    places are read a little further left and up than they lie (facebookresearch/dino, issue 8).
    SCLIP, NACLIP, ClearCLIP and ProxyCLIP have it from there; transformers has not.

    Args:
        positions: ``(1+n², C)``, the class token's first.
        grid: ``(h, w)`` of the patches.
        offset: by how much of a patch the grid is asked for larger.
        filter: one of :data:`FILTERS`.

    Returns:
        ``(1+h·w, C)``.
    """
    side = math.isqrt(len(positions) - 1)
    if grid == (side, side):
        return positions
    # Filters round in 16 bits, and some have none.
    patches = upcast(positions[1:]).unflatten(0, (side, side)).permute(2, 0, 1)[None]
    if offset:
        factors = [(length + offset) / side for length in grid]
        patches = interpolate(patches, scale_factor=factors, **FILTERS[filter])
    else:
        patches = interpolate(patches, grid, **FILTERS[filter])
    return cat([positions[:1], patches[0].flatten(1).T.to(positions.dtype)])
