"""Clicks drawn at random inside the truth, in place of a person's."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

MARGIN = 0.02
"""Clicks keep this share of the shorter side away from other labels, where there is room for it:
people do not click on outlines."""

ROOM = 100
"""Pixels of a label that there must be at a margin, or a smaller one is taken."""


def drawn_clicks(
    truth: Tensor, labels: int, count: int, seed: int
) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Different pixels of each label, all equally likely.

    Args:
        truth: ``(H, W)`` integers below ``labels``, or 255 where nothing is said.
        labels: number of labels ``K``; one without a pixel gets no click.
        count: clicks a label; fewer where a label has fewer pixels. The first of a larger count are
            those of a smaller one.
        seed: the same seed, the same clicks.

    Returns:
        For each label, its clicks ``(x, y)``.
    """
    generator = torch.Generator().manual_seed(seed)
    margin = round(MARGIN * min(truth.shape))
    clicks = []
    for label in range(labels):
        inside = truth == label
        for distance in (margin, margin // 2, 0):
            pixels = eroded(inside, distance).nonzero()
            if len(pixels) >= ROOM:
                break
        order = torch.randperm(len(pixels), generator=generator)[:count]
        clicks.append(tuple((int(x), int(y)) for y, x in pixels[order]))
    return tuple(clicks)


def eroded(inside: Tensor, distance: int) -> Tensor:
    """Pixels whose square of ``2 · distance + 1`` holds no other; beyond the image is inside."""
    if not distance:
        return inside
    side = 2 * distance + 1
    outside = (~inside).float()[None]
    outside = max_pool2d(outside, (side, 1), stride=1, padding=(distance, 0))
    return max_pool2d(outside, (1, side), stride=1, padding=(0, distance))[0] == 0
