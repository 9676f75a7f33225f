"""The worst and the best images of a run, drawn beside their truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from nerve_fast.datasets import Dataset, Sample
from nerve_fast.datasets.dataset import IGNORED
from nerve_fast.errors import InputError
from nerve_fast.evaluation import record
from nerve_fast.evaluation.folder import claim, remove_made, seal
from nerve_fast.evaluation.method import failure
from nerve_fast.evaluation.metrics import mean_iou
from nerve_fast.evaluation.reading import read
from nerve_fast.evaluation.segmenter import Segmenter
from nerve_fast.imaging import visualize
from nerve_fast.utils.text import shortened

KINDS = ("worst", "best")

LONGEST_NAME = 200
"""Bytes of an image's name in that of its picture; file systems allow 255 in all."""


def draw(
    folder: Path,
    dataset: Dataset,
    segmenter: Segmenter,
    known: Mapping[str, record.Counts],
    samples: Mapping[str, Sample],
    count: int,
    *,
    progress: bool = False,
) -> list[Path]:
    """Draw the images with the least and the largest mean IoU of their own, segmented once more.

    They take the place of those that were drawn before. A picture that no run drew stays.

    Args:
        known: of each image, by the names that ``samples`` have.
        count: of the worst, and of the best.
        progress: whether bars on stderr show how far it is.

    Returns:
        The files.
    """
    remove_made(folder, starting=tuple(f"{kind}-" for kind in KINDS))
    drawn = []
    classes = len(dataset.classes)
    own = {name: mean_iou(record.total(known, [name], classes)[0]) for name in samples}
    order = sorted((name for name in own if own[name] == own[name]), key=own.__getitem__)
    hidden = None if progress else True
    for kind, names in zip(KINDS, (order[:count], order[::-1][:count]), strict=True):
        for place, name in enumerate(tqdm(names, kind, unit="image", disable=hidden), start=1):
            sample = samples[name]
            try:
                image, truth = read(dataset, sample, segmenter.words, segmenter.refiner)
                picture = side_by_side(image, truth, segmenter(image), dataset.classes)
            except InputError as error:  # The file was changed since it was evaluated.
                failure(sample, error)
                continue
            name_of_file = f"{kind}-{place:02}-{shortened(sample.name, LONGEST_NAME)}.png"
            claim(folder, [name_of_file])
            visualize.save_picture(picture, folder / name_of_file)
            seal(folder, name_of_file)
            drawn.append(folder / name_of_file)
    return drawn


def side_by_side(
    image: Image.Image, truth: torch.Tensor, prediction: torch.Tensor, classes: Sequence[str]
) -> Image.Image:
    """Draw the image, its ground truth and the prediction side by side, each with a legend."""
    names = [*classes, "none"]
    truth = truth.long().masked_fill(truth == IGNORED, len(classes))
    panels = [
        image,
        *(visualize.overlay(image, labels.numpy(), names) for labels in (truth, prediction)),
    ]
    sheet = Image.new(
        "RGB",
        (sum(panel.width for panel in panels), max(panel.height for panel in panels)),
        "white",
    )
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width
    return sheet
