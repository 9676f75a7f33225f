"""What people refine a coarse segmentation with today, beside the graph stage: the same image.

Each does another computation, so each is compared with its own definition in float64 (how good
their masks are is a question for an evaluation, not for this file). The graph stage and the chain
of head maps work on tokens, 8 pixels wide; the others on pixels.
"""

import math

import torch
from torch.nn.functional import interpolate

import nerve_fast as nf
from nerve_fast.bench.cases.stage import stage_floors
from nerve_fast.bench.cases.walk import fused_attention, true_walk
from nerve_fast.bench.harness.case import (
    Case,
    Contender,
    Operation,
    Setting,
    cases,
    graph_inputs,
)

PIXELS = 8
"""Of an image's side to a token of its latents."""

ITERATIONS, DILATIONS = 10, (8, 16)
MAPS = 10


def inputs(setting, seed):
    """``q, k, prior`` of the tokens, and an image ``(3, H, W)`` of soft blobs and some noise."""
    q, k, prior, _ = graph_inputs(setting, seed)
    generator = torch.Generator(setting.device).manual_seed(seed)
    size = [PIXELS * side for side in setting.grid]
    coarse = torch.rand(1, 3, 8, 8, generator=generator, device=setting.device)
    noise = torch.rand(3, *size, generator=generator, device=setting.device)
    return q, k, prior, interpolate(coarse, size, mode="nearest")[0] * 0.9 + 0.1 * noise


def masks_of(prior, grid, size):
    """``(N, K)`` as ``(K, H, W)``."""
    maps = prior.T.unflatten(1, grid)[None]
    return interpolate(maps, size, mode="bilinear", align_corners=False)[0]


# Ours.


def our_stage(setting, q, k, prior, image):
    config = setting.config()
    return lambda: nf.random_walk(q, k, prior, setting.grid, config)


def true_stage(setting, q, k, prior, image):
    return true_walk(setting, q, k, prior)


# PAMR (Araslanov and Roth, CVPR 2020): masks move to neighbours of a like colour, ten times.


def run_pamr(setting, q, k, prior, image):
    # diffusers, which comes along, takes seconds to import; the other rows do without.
    from nerve_fast.refiners import pamr

    masks = masks_of(prior, setting.grid, image.shape[1:])
    return lambda: pamr(image, masks, ITERATIONS, DILATIONS)


def true_pamr(setting, q, k, prior, image):
    from nerve_fast.refiners import pamr

    masks = masks_of(prior.double(), setting.grid, image.shape[1:])
    return pamr(image.double(), masks, ITERATIONS, DILATIONS)


# DenseCRF (Krähenbühl and Koltun, NeurIPS 2011): all pairs of pixels, ten times of mean field.


def run_crf(setting, q, k, prior, image):
    from nerve_fast.imaging.densecrf import densecrf

    masks = masks_of(prior, setting.grid, image.shape[1:])
    return lambda: densecrf(255 * image, masks)


def true_crf(setting, q, k, prior, image):
    """The sum over all pairs as it is written."""
    size = image.shape[1:]
    masks = masks_of(prior.double(), setting.grid, size).flatten(1)
    sides = (torch.arange(side, dtype=torch.float64) for side in size)
    places = torch.cartesian_prod(*sides)
    colours = 255 * image.double().flatten(1).T
    total = torch.zeros(len(places), len(places), dtype=torch.float64)
    for weight, features in ((3, places), (4, torch.cat([places / 67, colours / 3], 1))):
        kernel = torch.cdist(features, features).square_().div_(-2).exp_()
        scale = kernel.sum(0).rsqrt()
        total += kernel.mul_(weight * scale[:, None]).mul_(scale)
    Q = masks
    for _ in range(10):
        Q = (masks.log() + Q @ total).softmax(0)
    return Q.unflatten(1, size)


# scikit-image's random walker (Grady 2006), seeds where the prior is sure.


def seeds_of(setting, prior):
    """``(H, W)``: a label from 1 on the middle pixels of sure tokens, 0 where it is asked for."""
    height, width = setting.grid
    sure, label = prior.max(-1)
    best = torch.zeros_like(prior).scatter_(1, label[:, None], sure[:, None])
    # The surest token of each label seeds it too: none may be missing.
    chosen = sure > 0.9
    chosen[best.argmax(0)[best.amax(0) > 0]] = True
    seeds = torch.zeros(PIXELS * height, PIXELS * width, dtype=torch.int64)
    middle = slice(PIXELS // 2, None, PIXELS)
    seeds[middle, middle] = torch.where(chosen, label + 1, 0).unflatten(0, setting.grid)
    return seeds.numpy()


def random_walker(setting, prior, image, **options):
    from skimage.segmentation import random_walker

    pixels = image.permute(1, 2, 0).double().numpy()
    seeds = seeds_of(setting, prior)

    def run():
        return torch.from_numpy(
            random_walker(pixels, seeds, channel_axis=-1, return_full_prob=True, **options)
        )

    return run


def run_walker(setting, q, k, prior, image):
    # Directly: faster than its default, conjugate gradients, to the precision asked of all.
    return random_walker(setting, prior, image, mode="bf")


def true_walker(setting, q, k, prior, image):
    return random_walker(setting, prior, image, mode="cg_j", tol=1e-8, prob_tol=1)()


# CLIPer's chain: the N × N attention maps of all heads multiplied, then applied to the prior.


def head_maps(q, k):
    """The attention of each head, ``(H, N, N)``; the heads of two layers where there are five."""
    maps = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return maps.repeat(-(-MAPS // len(maps)), 1, 1)[:MAPS]


def run_chain(setting, q, k, prior, image):
    """``(A₁ A₂ … A₁₀) G``, as it is written: nine products of N × N matrices."""

    def run():
        first, *others = head_maps(q, k)
        for other in others:
            first = first @ other
        return first @ prior.to(first.dtype)

    return run


def run_chain_streamed(setting, q, k, prior, image):
    """``A₁ (A₂ (… (A₁₀ G)))`` by attention with values Y: the same result, no map stored."""

    def run():
        Y = prior.to(q.dtype)
        for index in reversed(range(MAPS)):
            head = slice(index % len(q), index % len(q) + 1)
            Y = fused_attention(q[None, head], k[None, head], Y[None, None])[0, 0]
        return Y

    return run


def true_chain(setting, q, k, prior, image):
    Y = prior.double()
    for attention in reversed(head_maps(q.double(), k.double())):
        Y = attention @ Y
    return Y


REFINE = Operation("refine a mask", inputs, true_stage, stage_floors)
CONTENDERS = [
    Contender("nerve-fast, auto", our_stage, ours=True, graph=False),
    Contender("PAMR", run_pamr, truth=true_pamr, note="10 iterations, dilations 8 and 16, pixels"),
    Contender(
        "DenseCRF",
        run_crf,
        only=lambda s: s.tokens <= 1024,
        truth=true_crf,
        checked=96,
        slack=10,
        graph=False,
        note="10 iterations, all pairs of pixels",
    ),
    Contender(
        "skimage random_walker",
        run_walker,
        only=lambda s: s.device == "cpu" and s.tokens <= 1024,
        needs="skimage",
        truth=true_walker,
        checked=256,
        slack=100,
        graph=False,
        note="mode 'bf', float64, pixels",
    ),
    Contender(
        "CLIPer's chain",
        run_chain,
        only=lambda s: s.tokens <= 4096,
        truth=true_chain,
        note="ten N × N maps multiplied, then applied to G",
    ),
    Contender(
        "CLIPer's chain from the right",
        run_chain_streamed,
        attends=True,
        truth=true_chain,
        note="the same result by ten attentions with values Y",
    ),
]


def settings(device: str) -> list[tuple[str, Setting]]:
    """Images of 256² and 512² pixels."""
    return [
        ("quick", Setting(1024, device=device)),
        ("full", Setting(4096, device=device)),
    ]


def measured(device: str) -> list[Case]:
    """The cases of this file."""
    return cases(REFINE, CONTENDERS, settings(device))


def test_refine(case, run_case):
    run_case(case)
