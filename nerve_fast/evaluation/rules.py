"""From probabilities to a label for each pixel, as public code has it.

Maps are on a grid; they are brought to pixels bilinearly (``align_corners=False``, and without
averaging where an image is smaller than its maps) and ``(K, H, W)`` is never whole.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from nerve_fast.imaging.resampling import stripes

EPSILON = 1e-5
"""Keeps CLIPer's divisions from dividing by 0."""


def thresholded(
    maps: Tensor,
    size: tuple[int, int],
    probabilities_of: Callable[[Tensor], Tensor],
    *,
    least: Tensor | float,
    area_threshold: float,
    under: int = 0,
    first: int = 0,
) -> Tensor:
    """Label each pixel by its likeliest class, or by class 0 below a threshold: SCLIP's rule.

    Args:
        maps: ``(C, h, w)``, brought to ``size`` first.
        size: ``(H, W)``.
        probabilities_of: what makes ``(K - first, …)`` probabilities of ``(C, …)`` maps.
        least: pixels whose largest probability is below it are of the class ``under``; a number,
            or one for each class, ``(K,)``.
        area_threshold: classes but 0 that cover no larger share of the pixels of classes but 0 are
            left out first.
        under: a class, or ``K`` for none.
        first: the first class that has a probability; with an area threshold 0.

    Returns:
        ``(H, W)`` int64.
    """

    if isinstance(least, Tensor):
        least = least.to(maps)

    def labels(left_out=None):
        found = torch.empty(size, dtype=torch.int64, device=maps.device)
        for rows, stripe in stripes(maps, size, antialias=False):
            probabilities = probabilities_of(stripe)
            if left_out is not None:
                probabilities[left_out] = 0
            largest, best = probabilities.max(0)
            found[rows] = best + first
            if left_out is not None or not area_threshold:
                enough = least[found[rows]] if isinstance(least, Tensor) else least
                found[rows].masked_fill_(largest < enough, under)
        return found

    label_map = labels()
    if not area_threshold:
        return label_map
    areas = torch.bincount(label_map.flatten())[1:]
    small = areas <= area_threshold * areas.sum()
    return labels(left_out=small.nonzero()[:, 0] + 1)


def cliper(
    prior: Tensor,
    refined: Tensor,
    size: tuple[int, int],
    *,
    has_background: bool,
    score: float,
    background: float,
    stretched: bool,
) -> Tensor:
    r"""Label each pixel by the strongest class that the image seems to hold: CLIPer's rule.

    A class's score ``s`` is the mean of the largest values of its map before and after refinement.
    At the pixels its map is ``s · m / max m``, ``stretched`` brings it to 0 to 1, and what is below
    ``background`` becomes 0. Classes of ``s`` not above ``score`` do not take part. Where nothing
    is left there is background, or no label where the data set has no background.

    Args:
        prior, refined: ``(K, h, w)`` maps before and after refinement, on grids of their own; with
            a background their class 0 does not take part.
        size: ``(H, W)``.
        has_background: whether class 0 is background.

    Returns:
        ``(H, W)`` int64, ``K`` for no label.
    """
    scores = (prior.amax((1, 2)) + refined.amax((1, 2))) / 2
    nothing = 0 if has_background else len(refined)
    best = torch.zeros(size, device=refined.device)
    label_map = torch.full(size, nothing, device=refined.device)
    for label in range(int(has_background), len(refined)):
        if scores[label] <= score:
            continue
        plane = interpolate(refined[None, None, label], size, mode="bilinear")[0, 0]
        plane = plane / (plane.amax() + EPSILON) * scores[label]
        if stretched:
            plane = plane - plane.amin()
            plane = plane / (plane.amax() + EPSILON / 10)
        better = (plane > best) & (plane >= background)
        label_map.masked_fill_(better, label)
        best = torch.where(better, plane, best)
    return label_map


def nearest(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Label each place by its best class, and each pixel as the place above and left of it.

    It is CLIP-DIY's rule: OpenCV's ``INTER_NEAREST`` on the labels, whose places are these.

    Args:
        scores: ``(K, h, w)``.
        size: ``(H, W)``.

    Returns:
        ``(H, W)`` int64.
    """
    label_map = scores.argmax(0)
    rows, columns = (
        (torch.arange(new, dtype=torch.float64) * (1 / (new / old))).long().clamp(max=old - 1)
        for old, new in zip(label_map.shape, size, strict=True)
    )
    return label_map[rows[:, None].to(scores.device), columns.to(scores.device)]


def stretched(maps: Tensor, side: int | None) -> Tensor:
    """Bring each map to 0 to 1 over the image: GEM's heat maps.

    Args:
        maps: ``(M, h, w)``.
        side: in pixels, of the square that the network saw, at which the least and the largest
            value are taken; ``None`` takes them of the maps as they are.

    Returns:
        ``(M, side, side)``; a map that is the same everywhere is 0.
    """
    if side is not None:
        maps = interpolate(maps[None], (side, side), mode="bilinear", align_corners=False)[0]
    least, largest = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - least) / (largest - least).clamp_min(torch.finfo(maps.dtype).tiny)
