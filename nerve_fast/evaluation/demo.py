"""The shipped models on scenes they have not seen: how good the prior is and what the walk adds."""

import copy
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from nerve_fast.backbones.diffusion import DiffusionBackbone
from nerve_fast.evaluation.metrics import confusion_matrix, mean_iou
from nerve_fast.imaging import visualize
from nerve_fast.imaging.images import to_tensor
from nerve_fast.imaging.resampling import as_distribution, as_maps, likeliest
from nerve_fast.ops import random_walk
from nerve_fast.pipeline import NervePipeline
from nerve_fast.tiny.scenes import HELD_OUT_SEED, NAMES, generate


def run(
    pipe: NervePipeline,
    folder: Path,
    *,
    scenes: int = 50,
    first_seed: int = HELD_OUT_SEED,
    pictures: int = 6,
) -> dict:
    """Segment scenes four ways and draw the first few.

    Args:
        pipe: the shipped models.
        folder: takes one PNG for each of the first ``pictures`` scenes; made if it is not there.
        scenes: number of scenes.
        first_seed: of the scenes; training draws below 900,000, tuning from there to the default.
        pictures: number of scenes drawn.

    Returns:
        mIoU in [0, 1] of the prior alone, of the walk, and of the same walk on raw colours and on
        the queries and keys of the UNet before training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    untrained = _untrained(pipe.diffusion)
    stages = visualize.strip_stages(pipe.config.steps)
    totals = {}
    for number in tqdm(range(scenes), "scenes", unit="scene", disable=None):
        seed = first_seed + number
        image, mask, names = generate(seed)
        out = pipe(image, names, return_steps=stages if number < pictures else ())
        label_maps = {
            "prior": likeliest(out.prior, mask.shape),
            "walk on raw RGB": _walk(*_colours(image, out.prior), out.prior, pipe, mask.shape),
            "walk on an untrained UNet's Q/K": _walk(
                *_features(untrained, image), out.prior, pipe, mask.shape
            ),
            "walk on the UNet's Q/K (NERVE)": out.label_map,
        }
        everywhere = torch.tensor([NAMES.index(name) for name in names])
        for method, label_map in label_maps.items():
            counts = confusion_matrix(everywhere[label_map], everywhere[mask], len(NAMES))
            totals[method] = totals.get(method, 0) + counts
        if number < pictures:
            steps = {count: maps.numpy() for count, maps in out.steps.items()}
            picture = visualize.steps_strip(image, out.prior.numpy(), steps, names, truth=mask)
            visualize.save_picture(picture, folder / f"scene-{seed}.png")
    return {method: mean_iou(counts) for method, counts in totals.items()}


def _untrained(diffusion: DiffusionBackbone) -> DiffusionBackbone:
    """The same backbone, of float32 as the demo's is, with the UNet as it was before training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(diffusion.unet.config)
    backbone = copy.copy(diffusion)
    backbone.unet = unet.to(diffusion.unet.device).eval()
    return backbone


def _features(diffusion: DiffusionBackbone, image) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = diffusion.queries_and_keys([image], image.size, [generator])
    return features.q[0], features.k[0]


def _colours(image, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Mean colour of each token in [-1, 1], as one head of three channels."""
    colours = adaptive_avg_pool2d(to_tensor(image) * 2 - 1, prior.shape[1:])
    tokens = colours.flatten(1).T[None]
    return tokens, tokens


def _walk(q: Tensor, k: Tensor, prior: Tensor, pipe: NervePipeline, size) -> Tensor:
    """The pipeline's walk on another graph, ``(H, W)`` labels."""
    grid = tuple(prior.shape[1:])
    walked = random_walk(q, k, prior.flatten(1).T.to(q.device), grid, pipe.config)
    return likeliest(as_maps(as_distribution(walked), grid), size).cpu()
