"""Segmentation metrics as mmseg defines them, and Boundary IoU.

All are sums of integers over images, so that neither their order nor who counted them matters.
"""

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from nerve_fast.datasets.dataset import IGNORED

BOUNDARY_WIDTH = 0.02
"""The width of the band of Boundary IoU, as a share of the image's diagonal."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a segmentation, all in [0, 1]; ``nan`` where the denominator is 0.

    Attributes:
        miou: mean of :attr:`iou` over the classes that occur.
        present_miou: the same over the classes of the ground truth alone, as CLIPer has it.
        accuracy: share of pixels that were given their class (mmseg's aAcc).
        mean_accuracy: mean of :attr:`accuracies` over the classes of the ground truth (mAcc).
        iou, accuracies: a value a class.
    """

    miou: float
    present_miou: float
    accuracy: float
    mean_accuracy: float
    iou: tuple[float, ...]
    accuracies: tuple[float, ...]


def confusion_matrix(
    prediction: Tensor, truth: Tensor, classes: int, *, unlabelled: bool = False
) -> Tensor:
    """Count how many pixels of each class were given each label.

    Matrices of several images add up; integers, so that the order does not matter.

    Args:
        prediction: integers below ``classes``, any shape.
        truth: integers below ``classes``, or 255 where pixels are not to count; the same shape.
        classes: number of classes.
        unlabelled: predictions may also be ``classes``, which stands for no label at all.

    Returns:
        ``(classes, classes)`` int64, rows are the truth; with ``unlabelled`` a last column more.
    """
    columns = classes + unlabelled
    counted = truth != IGNORED
    pairs = truth[counted].long() * columns + prediction[counted].long()
    return torch.bincount(pairs.flatten(), minlength=classes * columns).view(classes, columns)


def scores(confusion: Tensor) -> Scores:
    """Compute the scores of a confusion matrix.

    A class with neither ground truth nor prediction is left out of the mean IoU; one that was
    predicted but does not occur in the ground truth counts 0. Pixels without a label count as wrong
    and belong to no class.

    Args:
        confusion: ``(K, K)`` int64, rows are the truth, or ``(K, K+1)`` with unlabelled pixels.
    """
    intersection, area = confusion.diagonal(), confusion.sum(1)
    predicted = confusion.sum(0)[: len(confusion)]
    # Integers up to 2^53 are exact in float64.
    iou = intersection.double() / (area + predicted - intersection)
    accuracies = intersection.double() / area
    return Scores(
        miou=iou.nanmean().item(),
        present_miou=iou[area > 0].nanmean().item(),
        accuracy=(intersection.sum().double() / area.sum()).item(),
        mean_accuracy=accuracies.nanmean().item(),
        iou=tuple(iou.tolist()),
        accuracies=tuple(accuracies.tolist()),
    )


def mean_iou(confusion: Tensor) -> float:
    """Return the mean intersection over union, in [0, 1], as :func:`scores` defines it."""
    return scores(confusion).miou


def boundary_counts(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Count intersection and union of each class's boundary in prediction and truth, in pixels.

    The boundary of a class is the band inside its mask as wide as 2 % of the image's diagonal: what
    an erosion by a square takes away, all beyond the image being outside (Cheng, Girshick, Dollár,
    Berg, Kirillov: Boundary IoU, CVPR 2021). Ignored pixels are cut out of both label maps first;
    so where the truth ends at them, the prediction does too.

    Args:
        prediction: ``(H, W)`` integers; those of ``classes`` or more are no label.
        truth: ``(H, W)`` integers below ``classes``, or 255.
        classes: number of classes ``K``.

    Returns:
        ``(K, 2)`` int64, that of several images add up: a class's Boundary IoU is the first column
        over the second.
    """
    width = max(round(BOUNDARY_WIDTH * math.hypot(*truth.shape)), 1)
    ignored = truth == IGNORED
    # One more than all classes: what is ignored, and what has no label.
    prediction, truth = (
        labels.long().clamp(max=classes).masked_fill(ignored, classes)
        for labels in (prediction, truth)
    )
    of_prediction, of_truth = (band(labels, width) for labels in (prediction, truth))

    def count(labels):
        return torch.bincount(labels, minlength=classes + 1)[:classes]

    intersection = count(truth[of_prediction & of_truth & (prediction == truth)])
    total = count(prediction[of_prediction]) + count(truth[of_truth])
    return torch.stack([intersection, total - intersection], dim=1)


def band(labels: Tensor, width: int) -> Tensor:
    """Find the boundaries of all classes at once: ``(H, W)`` bool, true where the square of
    ``2 · width + 1`` pixels around a pixel holds another label or leaves the image.
    """
    side = 2 * width + 1
    height, length = (size - side + 1 for size in labels.shape)
    found = torch.ones_like(labels, dtype=torch.bool)
    if min(height, length) > 0:
        # A square holds one label where no two neighbours in it differ; sums of differences over
        # rectangles are four look-ups in a table of sums.
        below = _rectangle_sums(labels[1:] != labels[:-1], side - 1, side)
        beside = _rectangle_sums(labels[:, 1:] != labels[:, :-1], side, side - 1)
        found[width : width + height, width : width + length] = (below + beside) > 0
    return found


def _rectangle_sums(values: Tensor, height: int, width: int) -> Tensor:
    """Sum ``(H, W)`` bool over all rectangles inside it: ``(H − height + 1, W − width + 1)``."""
    table = pad(values.to(torch.int32).cumsum(0).cumsum(1), (1, 0, 1, 0))
    upper, lower = table[:-height], table[height:]
    return lower[:, width:] - lower[:, :-width] - upper[:, width:] + upper[:, :-width]


def boundary_iou(counts: Tensor) -> tuple[float, tuple[float, ...]]:
    """Return the mean Boundary IoU over the classes that occur, and the value of each class.

    Args:
        counts: ``(K, 2)`` of :func:`boundary_counts`.
    """
    iou = counts[:, 0].double() / counts[:, 1]
    return iou.nanmean().item(), tuple(iou.tolist())


def without_nan(value):
    """Replace each ``nan``, which JSON lacks, by ``None``, also inside lists and dictionaries."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if value != value else value
