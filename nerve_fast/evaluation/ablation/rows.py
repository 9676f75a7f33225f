"""The rows of an ablation's table: mIoU of each setting, and intervals of differences."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from nerve_fast.evaluation.ablation.ablations import Setting
from nerve_fast.evaluation.metrics import mean_iou

RESAMPLES = 1000
"""How often the images are drawn again for the interval of a difference."""


def rows(
    settings: dict[str, Setting],
    base: Setting,
    matrices: Callable[[Setting], Iterable[Tensor]],
) -> list[dict]:
    """Return the rows of an ablation's table; mIoU is in [0, 1], or ``nan`` where no pixel counts.

    Args:
        settings: by label.
        base: what they are compared with, one of them.
        matrices: of a setting ``(K, K+1)`` an image, the last column for pixels without a label.

    Returns:
        One a setting. ``interval`` is the middle 95 % of its difference to ``base`` over images
        drawn again with replacement, the same for both.
    """
    measured = {}
    for setting in settings.values():
        total, parts = torch.zeros((), dtype=torch.int64), []
        for matrix in matrices(setting):
            total = total + matrix
            parts.append(unions(matrix))
        measured[setting] = mean_iou(total), torch.stack(parts)
    return [
        {
            "label": label,
            "config": setting.config.to_dict(),
            "timestep": setting.timestep,
            "single_head": setting.single_head,
            "base": setting == base,
            "miou": measured[setting][0],
            "interval": difference_interval(measured[setting][1], measured[base][1]),
        }
        for label, setting in settings.items()
    ]


def unions(matrix: Tensor) -> Tensor:
    """Return intersection and union of each class, ``(2, K)``, of a matrix ``(K, K+1)``."""
    intersection = matrix.diagonal()
    return torch.stack([intersection, matrix.sum(1) + matrix.sum(0)[:-1] - intersection])


def difference_interval(own: Tensor, other: Tensor) -> list[float]:
    """Return the middle 95 % of the difference in mIoU over bootstrap samples of the images.

    Samples in which no pixel counts are left out; ``nan`` where that is all of them.

    Args:
        own, other: ``(images, 2, K)``, :func:`unions` of two settings.
    """
    images = len(own)
    drawn = torch.randint(images, (RESAMPLES, images), generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(RESAMPLES, images, dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(weights))

    def scores(parts):
        intersection, union = (weights @ parts.flatten(1).double()).view(RESAMPLES, 2, -1).unbind(1)
        return (intersection / union).nanmean(1)

    edges = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return (scores(own) - scores(other)).nanquantile(edges).tolist()
