"""A coarse prior made finer: what the walk makes of the truth at few cells, a fifth of them wrong.

This is what the walk does to CLIP's prior, without CLIP.
"""

import torch
from graphs import graph
from photographs import Photograph
from segmenters import distribution, walked
from torch import Tensor
from torch.nn.functional import interpolate, one_hot
from trials import both, kept, refiner

import nerve_fast as nf
from nerve_fast.evaluation.metrics import IGNORED
from nerve_fast.pipeline.stages import to_labels

CELLS = (8, 16, 32)
WRONG = 0.2
SEEDS = 3
WAYS = ("bilinear", "walk", "bilinear + PAMR", "walk + PAMR")


def coarse_prior(truth: Tensor, labels: int, cells: int, seed: int) -> Tensor:
    """One-hot ``(K, cells, cells)``: each cell's most frequent label, and in a fifth of the cells
    another one; a cell in which nothing counts is equal for all labels.
    """
    height, width = truth.shape
    rows, columns = (torch.arange(length) * cells // length for length in (height, width))
    cell = (rows[:, None] * cells + columns).expand(height, width)
    counted = truth != IGNORED
    votes = torch.bincount(cell[counted] * labels + truth[counted], minlength=cells**2 * labels)
    votes = votes.view(cells**2, labels)
    generator = torch.Generator().manual_seed(seed)
    chosen = votes.argmax(1)
    wrong = torch.randperm(cells**2, generator=generator)[: round(WRONG * cells**2)]
    chosen[wrong] += torch.randint(1, labels, (len(wrong),), generator=generator)
    prior = one_hot(chosen % labels, labels).float()
    prior[votes.sum(1) == 0] = 1 / labels
    return prior.T.reshape(labels, cells, cells)


def coarse_trial(photograph: Photograph, settings: dict, ways=WAYS) -> dict:
    """mIoU and Boundary IoU by cells and by way: two lists over the seeds."""
    return kept(
        {"coarse": list(ways), "settings": settings, "wrong": WRONG, "seeds": SEEDS},
        photograph,
        lambda: made(photograph, settings, ways),
    )


def made(photograph: Photograph, settings: dict, ways) -> dict:
    labels = len(photograph.labels)
    size = photograph.image.size[::-1]
    refine = refiner(photograph) if any("PAMR" in way for way in ways) else None
    tokens = graph("qk", photograph)
    config = nf.NerveConfig(**settings)
    found = {}
    for cells in CELLS:
        priors = [coarse_prior(photograph.truth, labels, cells, seed) for seed in range(SEEDS)]
        at_tokens = [on_tokens(prior, tokens.grid) for prior in priors]
        walks = walked(tokens, at_tokens, config, [config.steps])[config.steps]
        finer = [distribution(one, tokens.grid) for one in walks]
        found[str(cells)] = {}
        for way in ways:
            scores = finer if way.startswith("walk") else priors
            if way.endswith("PAMR"):
                scores = refine(scores)
            values = [both(to_labels(one, size), photograph) for one in scores]
            found[str(cells)][way] = [list(column) for column in zip(*values, strict=True)]
    return found


def on_tokens(prior: Tensor, grid: tuple[int, int]) -> Tensor:
    """``G (N, K)``: the cells resampled bilinearly; averaged where cells are the smaller ones."""
    finer = interpolate(prior[None], grid, mode="bilinear", align_corners=False, antialias=True)[0]
    return finer.flatten(1).T / finer.flatten(1).sum(0)[:, None]
