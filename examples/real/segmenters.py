"""Ways from clicks to a label for every pixel: walks on graphs, and what they are held against."""

from collections.abc import Sequence

import numpy as np
import torch
from graphs import GRAPHS, Graph, graph
from photographs import Photograph
from PIL import Image
from skimage.segmentation import random_walker
from torch import Tensor
from torch.nn.functional import interpolate, normalize

import nerve_fast as nf

Clicks = Sequence[Sequence[tuple[int, int]]]
"""For each label, its clicks ``(x, y)`` in pixels of the photograph."""

NEAREST = "nearest"
WALKER = "random_walker"
SEGMENTERS = {
    **{name: f"walk on {title}" for name, title in GRAPHS.items()},
    NEAREST: "nearest neighbour in DINOv2's features",
    WALKER: "scikit-image's random_walker",
}
WALKER_SIDE = 640
"""Longer sides are reduced to this for ``random_walker``, which solves a system of all pixels."""


def segment(name: str, photograph: Photograph, sets: Sequence[Clicks], settings: dict) -> list:
    """Scores of the labels, ``(K, h, w)`` at any size, for each set of clicks.

    Args:
        name: one of ``SEGMENTERS``.
        photograph: what is segmented; its truth is not looked at.
        sets: sets of clicks.
        settings: of ``NerveConfig`` for the walks, and ``calibrated``; ``beta`` for
            ``random_walker``.
    """
    if name == WALKER:
        return [walked_by_colour(photograph.image, clicks, **settings) for clicks in sets]
    tokens = graph("features" if name == NEAREST else name, photograph)
    seeds = [seeded(clicks, photograph.image.size, tokens.grid) for clicks in sets]
    if name == NEAREST:
        return [nearest(tokens, one) for one in seeds]
    settings = dict(settings)
    calibrated = settings.pop("calibrated")
    return [
        with_seeds(found, prior)
        for found, prior in zip(
            walked(tokens, seeds, nf.NerveConfig(**settings), calibrated), seeds, strict=True
        )
    ]


def seeded(clicks: Clicks, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """``G (N, K)``: a label's column is one over the number of its tokens on each of them."""
    seeds = torch.zeros(*grid, len(clicks))
    for label, points in enumerate(clicks):
        for x, y in points:
            seeds[y * grid[0] // size[1], x * grid[1] // size[0], label] = 1
    seeds = seeds.flatten(0, 1)
    return seeds / seeds.sum(0).clamp(min=1)


def walked(
    tokens: Graph, priors: Sequence[Tensor], config: nf.NerveConfig, calibrated: bool = False
) -> list[Tensor]:
    """One walk for all priors ``(N, K)``, as it is linear in them.

    Args:
        tokens: the graph.
        priors: distributions over labels, or seeds.
        config: settings.
        calibrated: see :func:`calibration`; for seeds.

    Returns:
        ``(K, h, w)`` for each, the labels of a token summing to 1, or to 0 where nothing came.
    """
    everything = nf.random_walk(tokens.q, tokens.k, torch.cat(list(priors), 1), tokens.grid, config)
    found = []
    for one, prior in zip(
        everything.split([prior.shape[1] for prior in priors], 1), priors, strict=True
    ):
        one = one.clamp(min=0)
        if calibrated:
            one = one / calibration(one, prior, config)
        total = one.sum(1, keepdim=True)
        found.append(torch.where(total > 0, one / total, 0).T.unflatten(1, tokens.grid))
    return found


def calibration(found: Tensor, seeds: Tensor, config: nf.NerveConfig) -> Tensor:
    r"""By what each label is divided: its mean at its own seeds, less what never left them.

    A walker inside a thing of ``n`` tokens meets any one of them with a probability of about
    ``1/n``: seeds in a large thing are met more seldom, even from within, than what leaks to the
    seeds of a small one. What a label has at its own seeds,

    .. math:: \frac{1}{|s_k|} \sum_{i \in s_k} \left(P_L - \frac{1-\alpha}{1-\alpha^{L+1}}
              G\right)_{ik},

    is the measure of that. Scaling seeds still changes nothing.
    """
    alpha, steps = config.alpha, config.steps
    start = (1 - alpha) / (1 - alpha ** (steps + 1)) if alpha < 1 else 1 / (steps + 1)
    own = seeds > 0
    returned = ((found - start * seeds).clamp(min=0) * own).sum(0) / own.sum(0).clamp(min=1)
    # A label whose walkers never come back, as with no step at all, stays as it is.
    return torch.where(returned > 0, returned, 1)


def with_seeds(scores: Tensor, seeds: Tensor) -> Tensor:
    """Seeded tokens with their own labels, ``(K, h, w)``."""
    own = (seeds > 0).float().T.view_as(scores)
    return torch.where(own.sum(0) > 0, own / own.sum(0).clamp(min=1), scores)


def nearest(tokens: Graph, seeds: Tensor) -> Tensor:
    """The largest cosine with a seed of each label."""
    features = normalize(tokens.q[0], dim=-1)
    scores = [(features @ features[column > 0].T).amax(1) for column in seeds.T]
    return torch.stack(scores).unflatten(1, tokens.grid)


def walked_by_colour(image: Image.Image, clicks: Clicks, beta: float) -> Tensor:
    """scikit-image's solution of Grady's random walker, on the pixels' colours."""
    factor = min(WALKER_SIDE / max(image.size), 1)
    width, height = (round(side * factor) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BOX)) / 255
    markers = np.zeros((height, width), np.int64)
    for label, points in enumerate(clicks):
        for x, y in points:
            markers[int(y * factor), int(x * factor)] = label + 1
    found = random_walker(
        pixels, markers, beta=beta, mode="bf", channel_axis=-1, return_full_prob=True
    )
    return torch.from_numpy(found).float()


def labelled(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The best label of each pixel ``(H, W)`` of ``(width, height)``; ``K`` where all are 0."""
    scores = interpolate(scores[None], size[::-1], mode="bilinear", align_corners=False)[0]
    best, labels = scores.max(0)
    return labels.masked_fill(best == 0, len(scores))
