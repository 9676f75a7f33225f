"""Where a support image shows its word, and where it surely shows something else."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

FOREGROUND, BACKGROUND = 0.5, 0.2
"""Attribution above the first is the word's where no mask was proposed; below the second nothing of
it is."""


def scaled(maps: Tensor) -> Tensor:
    """Maps ``(n, h, w)`` brought to 0 to 1, each."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-6)


def at_pixels(maps: Tensor, side: int) -> Tensor:
    """Attributions ``(n, h, w)`` as ``(n, side, side)`` from 0 to 1."""
    maps = interpolate(scaled(maps)[:, None], (side, side), mode="bilinear", align_corners=False)
    return scaled(maps[:, 0])


def support_masks(proposals: Sequence[Tensor], attribution: Tensor) -> tuple[Tensor, Tensor]:
    """The foreground and the background of a support image.

    Proposals, and the pixels of none of them as one more, are ranked by their mean attribution. The
    best is the foreground. The background is the worst of those of which something is not hidden
    by better ones, without what is hidden, where the attribution is below :data:`BACKGROUND`,
    eroded by a pixel. Without proposals both are thresholds of the attribution.

    Args:
        proposals: ``(H, W)`` bool each; empty ones do not count.
        attribution: ``(H, W)`` from 0 to 1.

    Returns:
        Two masks ``(H, W)`` bool, which may be empty.
    """
    own = [mask for mask in proposals if mask.any()]
    if not own:
        return attribution > FOREGROUND, attribution < BACKGROUND
    rest = ~torch.stack(own).any(0)
    masks = torch.stack([rest, *own] if rest.any() else own)
    means = torch.stack([attribution[mask].mean() for mask in masks])
    order = means.argsort(descending=True, stable=True)
    # Of each pixel, the best mask that has it; each pixel is in one.
    shown = masks[order].byte().argmax(0)
    background = (shown == shown.max()) & (attribution < BACKGROUND)
    return masks[order[0]], eroded(background)


def eroded(mask: Tensor) -> Tensor:
    """The pixels of a mask ``(H, W)`` whose four neighbours, where there are any, are in it too."""
    height, width = mask.shape
    padded = pad(mask.byte(), (1, 1, 1, 1), value=1).bool()
    return mask & padded[:height, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :width] & padded[1:-1, 2:]


def places(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """The places of a grid between whose nearest pixels one is in a mask: ``(h, w)`` bool."""
    return interpolate(mask[None, None].float(), grid, mode="bilinear")[0, 0] > 0
