"""Ways from clicks to a label for every pixel: walks on graphs, and what they are held against."""

from collections.abc import Sequence

import numpy as np
import torch
from graphs import GRAPHS, Graph, graph
from photographs import Photograph
from PIL import Image
from skimage.segmentation import random_walker
from torch import Tensor
from torch.nn.functional import normalize

import nerve_fast as nf
from nerve_fast.pipeline.stages import to_labels
from nerve_fast.priors.seeds import Seeds
from nerve_fast.refiners.walk import calibration

DEFAULT = "default"
NEAREST = "nearest"
WALKER = "random_walker"
SEGMENTERS = {
    **{name: f"walk on {title}" for name, title in GRAPHS.items()},
    DEFAULT: f"walk on {GRAPHS['qk']}, the package's defaults for seeds",
    NEAREST: "nearest neighbour in DINOv2's features",
    WALKER: "scikit-image's random_walker",
}
WALKER_SIDE = 512
"""Longer sides are reduced to this for ``random_walker``, which solves a system of all pixels."""


def segment(name: str, photograph: Photograph, sets: Sequence[Seeds], settings: dict) -> list:
    """Scores of the labels, ``(K, h, w)`` at any size and 0 or more, for each set of seeds.

    Args:
        name: one of ``SEGMENTERS``.
        photograph: what is segmented; its truth is not looked at.
        sets: sets of seeds.
        settings: of ``NerveConfig`` for the walks, and ``calibrated``; ``beta`` for
            ``random_walker``.
    """
    if name == WALKER:
        return [walked_by_colour(photograph.image, seeds, **settings) for seeds in sets]
    tokens = graph({NEAREST: "features", DEFAULT: "qk"}.get(name, name), photograph)
    priors = [seeds.prior(tokens.grid, photograph.labels) for seeds in sets]
    if name == NEAREST:
        return [nearest(tokens, prior) for prior in priors]
    settings = dict(settings)
    calibrated = settings.pop("calibrated")
    config = nf.NerveConfig(**settings)
    found = walked(tokens, priors, config, [config.steps])[config.steps]
    return [
        distribution(one, tokens.grid, calibration(one, prior, config.alpha, config.steps))
        if calibrated
        else distribution(one, tokens.grid)
        for one, prior in zip(found, priors, strict=True)
    ]


def walked(
    tokens: Graph, priors: Sequence[Tensor], config: nf.NerveConfig, steps: Sequence[int]
) -> dict[int, list[Tensor]]:
    """By the number of steps, ``P (N, K)`` for each prior: one walk, as it is linear in them."""
    head_weights = nf.entropy_weights(tokens.entropy, config.sharpness)
    everything = torch.cat(list(priors), 1)
    _, found = nf.random_walk(
        tokens.q,
        tokens.k,
        everything,
        tokens.grid,
        config.replace(steps=max(steps)),
        head_weights=head_weights,
        return_steps=tuple(steps),
    )
    sizes = [prior.shape[1] for prior in priors]
    return {count: list(one.split(sizes, 1)) for count, one in found.items()}


def distribution(found: Tensor, grid: tuple[int, int], divisor: Tensor | None = None) -> Tensor:
    """``P (N, K)`` as ``(K, h, w)``, labels of a token summing to 1, or to 0 where nothing came.

    Args:
        found: ``P``; negative values, which ``l1`` has, count as 0.
        grid: ``(h, w)``.
        divisor: ``(K,)``, of the labels, as :func:`calibration` gives it.
    """
    found = found.clamp(min=0)
    if divisor is not None:
        found = found / divisor
    total = found.sum(1, keepdim=True)
    return torch.where(total > 0, found / total, 0).T.unflatten(1, grid)


def nearest(tokens: Graph, seeds: Tensor) -> Tensor:
    """The largest cosine with a seed of each label, brought to [0, 1]."""
    features = normalize(tokens.q[0], dim=-1)
    scores = [(features @ features[column > 0].T).amax(1) for column in seeds.T]
    return (1 + torch.stack(scores).unflatten(1, tokens.grid)) / 2


def walked_by_colour(image: Image.Image, seeds: Seeds, beta: float) -> Tensor:
    """scikit-image's solution of Grady's random walker, on the pixels' colours."""
    factor = min(WALKER_SIDE / max(image.size), 1)
    width, height = (round(side * factor) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BOX)) / 255
    markers = np.zeros((height, width), np.int64)
    rows, columns = (seeds.pixels >= 0).nonzero().unbind(1)
    values = seeds.pixels[rows, columns].numpy() + 1
    markers[(rows * factor).long().numpy(), (columns * factor).long().numpy()] = values
    found = random_walker(
        pixels, markers, beta=beta, mode="bf", channel_axis=-1, return_full_prob=True
    )
    return torch.from_numpy(found).float()


def labelled(scores: Tensor, photograph: Photograph, seeds: Seeds) -> Tensor:
    """The likeliest label of each pixel, ``(H, W)``, seeds keeping theirs; ``K`` where there is
    none.
    """
    size = photograph.image.size[::-1]
    labels = seeds.overrule(to_labels(scores, size), photograph.labels)
    return labels.masked_fill(labels < 0, len(photograph.labels))
