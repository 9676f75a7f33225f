"""The shipped models on scenes they have not seen: how good the prior is and what the walk adds."""

from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from nerve_fast.backbones.source import GraphFeatures
from nerve_fast.config import NerveConfig
from nerve_fast.evaluation.metrics import confusion_matrix, mean_iou
from nerve_fast.imaging import visualize
from nerve_fast.imaging.images import to_tensor
from nerve_fast.pipeline import NervePipeline, SegmentationOutput, stages
from nerve_fast.tiny.scenes import HELD_OUT_SEED, NAMES, generate
from nerve_fast.utils.files import refuse_foreign


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
        the queries and keys of the graph's network before training.

    Raises:
        InputError: a picture's name is taken by a file that no demo made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = [folder / f"scene-{first_seed + i}.png" for i in range(min(pictures, scenes))]
    for place in places:
        refuse_foreign(place, visualize.PNG_MARK)
    # The diffusion models have it; sources in general do not.
    untrained = cast(Any, pipe.graph).untrained()
    shown = visualize.strip_stages((pipe.config or NerveConfig()).steps)
    totals: dict[str, Tensor] = {}
    for number in tqdm(range(scenes), "scenes", unit="scene", disable=None):
        seed = first_seed + number
        image, mask, names = generate(seed)
        drawn = shown if number < pictures else ()
        out = cast(SegmentationOutput, pipe(image, names, return_steps=drawn))
        view = stages.graph_view(untrained, image.size)
        label_maps = {
            "prior": stages.to_labels(out.prior, mask.shape),
            "walk on raw RGB": _labels(_colours(image, view.grid), out.prior, pipe, mask.shape),
            "walk on an untrained UNet's Q/K": _labels(
                stages.graph_of(untrained, [image], view, [torch.Generator().manual_seed(0)]),
                out.prior,
                pipe,
                mask.shape,
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
            visualize.save_picture(picture, places[number])
    return {method: mean_iou(counts) for method, counts in totals.items()}


def _colours(image: Image.Image, grid: tuple[int, int]) -> GraphFeatures:
    """Mean colour of each token in [-1, 1], as one head of three channels."""
    colours = adaptive_avg_pool2d(to_tensor(image) * 2 - 1, grid)
    tokens = colours.flatten(1).T[None, None]
    return GraphFeatures(tokens, tokens, grid)


def _labels(graph: GraphFeatures, prior: Tensor, pipe: NervePipeline, size) -> Tensor:
    """The pipeline's walk on another graph, ``(H, W)`` labels."""
    G = prior.flatten(1).T[None].to(graph.q.device)
    (walked,) = stages.walk(graph, G, pipe.config or NerveConfig())
    return stages.to_labels(walked.maps, size)
