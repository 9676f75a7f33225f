"""Bounds of errors and of values, shared by the package, its tests and its benchmarks."""

import torch
from torch import Tensor

EMPTY_ROW = 1e-12
"""A row whose absolute sum is not above this moves nowhere: it becomes the identity's row."""

NORM_FLOOR = 1e-12
"""Shorter vectors are divided by this instead of their norm, as ``normalize`` of torch does."""

LARGEST = 1e30
"""Larger values, and the inverses of smaller ones, leave the range of float32 sums."""

ERROR_BOUNDS = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}
"""Largest relative error of a result by the dtype of the inputs (see :func:`relative_error`)."""


def relative_error(out: Tensor, expected: Tensor) -> float:
    """``‖out − expected‖ / ‖expected‖`` in float64, over all elements.

    Args:
        out, expected: of one shape, any floating dtype, on any device.
    """
    out, expected = out.double().cpu(), expected.double().cpu()
    return float((out - expected).norm() / expected.norm())
