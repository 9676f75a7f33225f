"""From the rows of a walk to maps on the token grid, and from there to pixels, in stripes."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from nerve_fast.utils.tiles import GPU_TILE_BYTES, spans

STRIPE_BYTES = 1 << 20
"""Bytes of a stripe of all labels on a CPU: it stays in a core's cache, and ``(K, H, W)`` is never
whole in memory."""


def to_tokens(probabilities: Tensor, grid: tuple[int, int], rows: slice = slice(None)) -> Tensor:
    """The prior ``G``: probabilities, not similarities, resampled to the tokens and renormalised.

    Args:
        probabilities: ``(B, K, h', w')``.
        grid: ``(h, w)`` of the tokens.
        rows: of the grid, those that are wanted.

    Returns:
        ``(B, N, K)`` float32, rows sum to 1.
    """
    resampled = interpolate(
        probabilities, grid, mode="bilinear", align_corners=False, antialias=True
    )
    prior = resampled[..., rows, :].flatten(2).mT
    return prior / prior.sum(-1, keepdim=True)


def as_distribution(walked: Tensor) -> Tensor:
    """``(N, K)`` rows clipped at 0 and made to sum to 1, because ``l1`` walks can be negative.

    A row that has only negative values becomes uniform; one of zeros, which no seed has reached,
    stays.
    """
    positive = walked.clamp(min=0)
    total = positive.sum(-1, keepdim=True)
    reached = (walked != 0).any(-1, keepdim=True)
    uniform = torch.full_like(positive, 1 / positive.shape[-1]) * reached
    return torch.where(total > 0, positive / total.where(total > 0, 1), uniform)


def as_maps(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """A contiguous copy of ``(N, K)`` rows as ``(K, h, w)`` maps."""
    return rows.T.unflatten(1, grid).clone(memory_format=torch.contiguous_format)


def to_pixels(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """``(K, h, w)`` resampled bilinearly to ``size = (H, W)``: ``(K, H, W)``.

    The values are those of :func:`torch.nn.functional.interpolate` with ``antialias=True``.
    """
    pixels = maps.new_empty(len(maps), *size)
    for rows, stripe in stripes(maps, size):
        pixels[:, rows] = stripe
    return pixels


def likeliest(
    maps: Tensor, size: tuple[int, int], least: Tensor | None = None, instead: int = -1
) -> Tensor:
    """The index of the largest of ``K`` maps at each pixel: int64 ``(H, W)``; of equals the first.

    Args:
        maps: ``(K, h, w)``.
        size: ``(H, W)``.
        least: ``(K,)``, what the largest must be at least.
        instead: the index where it is less, and where no map is above 0.
    """
    if least is not None:
        least = least.to(maps)

    def uncertain(best, index):
        nothing = best <= 0
        return nothing if least is None else nothing | (best < least[index])

    label_map = torch.empty(size, dtype=torch.int64, device=maps.device)
    for rows, stripe in stripes(maps, size):
        if maps.device.type != "cpu":
            best, index = stripe.max(0)
            label_map[rows] = index.masked_fill_(uncertain(best, index), instead)
            continue
        # On a CPU torch's argmax over the first dimension goes value by value.
        best, index = stripe[0].clone(), label_map[rows].zero_()
        for label, plane in enumerate(stripe[1:], start=1):
            index.masked_fill_(plane > best, label)
            torch.maximum(best, plane, out=best)
        index.masked_fill_(uncertain(best, index), instead)
    return label_map


def mean_under(maps: Tensor, label_map: Tensor) -> Tensor:
    """The mean, over the pixels of each label, of the label's own map.

    Args:
        maps: ``(K, h, w)``.
        label_map: ``(H, W)`` int64, below ``K``, −1 where there is no label.

    Returns:
        ``(K,)`` float64, ``nan`` for a label without pixels.
    """
    count = len(maps)
    sums = torch.zeros(count, dtype=torch.float64)
    pixels = torch.zeros(count, dtype=torch.int64)
    for rows, stripe in stripes(maps, (label_map.shape[0], label_map.shape[1])):
        labels = label_map[rows]
        own = stripe.gather(0, labels.clamp(min=0)[None])[0]
        labelled = labels >= 0
        sums += torch.bincount(labels[labelled], own[labelled].double(), minlength=count)
        pixels += torch.bincount(labels[labelled], minlength=count)
    return sums / pixels


def stripes(
    maps: Tensor, size: tuple[int, int], *, antialias: bool = True
) -> Iterator[tuple[slice, Tensor]]:
    """Iterate over ``(rows, (K, len(rows), W))`` of maps resampled bilinearly, from top to bottom.

    Args:
        maps: ``(K, h, w)``.
        size: ``(H, W)``.
        antialias: whether values are averaged where the result is smaller than the maps.
    """
    height, width = size
    stripe_bytes = STRIPE_BYTES if maps.device.type == "cpu" else GPU_TILE_BYTES
    count = max(stripe_bytes // (len(maps) * width * maps.element_size()), 1)
    for rows in spans(height, count):
        source, weights = _row_weights(rows, maps.shape[1], height, maps, antialias)
        between = (weights @ maps[:, source].transpose(0, 1).flatten(1)).unflatten(
            1, (len(maps), -1)
        )
        across = interpolate(
            between.transpose(0, 1)[None],
            (rows.stop - rows.start, width),
            mode="bilinear",
            align_corners=False,
            # Without effect, and slower, where nothing is made smaller.
            antialias=antialias and width < maps.shape[2],
        )
        yield rows, across[0]


def _row_weights(
    rows: slice, old: int, new: int, like: Tensor, antialias: bool
) -> tuple[slice, Tensor]:
    """The slice of ``old`` rows that the ``rows`` of ``new`` depend on, and their weights.

    The weights are a triangle two rows of the old side wide; with ``antialias``, two rows of the
    coarser side.
    """
    scale = old / new
    support = max(scale, 1.0) if antialias else 1.0
    centre = (torch.arange(rows.start, rows.stop, dtype=torch.float64) + 0.5) * scale
    first = max(math.floor(centre[0].item() - support), 0)
    last = min(math.ceil(centre[-1].item() + support), old)
    place = torch.arange(first, last, dtype=torch.float64) + 0.5
    weights = (1 - (place - centre[:, None]).abs() / support).clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True)
    return slice(first, last), weights.to(like.device, like.dtype)
