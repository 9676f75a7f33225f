"""Segmentation metrics as mmseg defines them."""

import torch
from torch import Tensor

IGNORED = 255
"""Ground truth of this value counts nowhere."""


def confusion_matrix(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """How many pixels of each class were given each label.

    Matrices of several images add up; integers, so that the order does not matter.

    Args:
        prediction: integers below ``classes``, any shape.
        truth: integers below ``classes``, or 255 where pixels are not to count; the same shape.
        classes: number of classes.

    Returns:
        ``(classes, classes)`` int64, rows are the truth.
    """
    counted = truth != IGNORED
    pairs = truth[counted].long() * classes + prediction[counted].long()
    return torch.bincount(pairs.flatten(), minlength=classes**2).view(classes, classes)


def mean_iou(confusion: Tensor) -> float:
    """Mean intersection over union, in [0, 1], over the classes that occur.

    A class with neither ground truth nor prediction is left out; one that was predicted but does
    not occur in the ground truth counts 0.
    """
    intersection = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - intersection
    return (intersection[union > 0] / union[union > 0]).double().mean().item()
