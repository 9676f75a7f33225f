"""Bounds of errors and of values, shared by the package, its tests and its benchmarks."""

import math

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


def upcast(x: Tensor) -> Tensor:
    """``x`` in the dtype of all sums: float32, or float64 where ``x`` is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def steps_to_limit(alpha: float, tolerance: float, row_sum: float = 1.0) -> int:
    r"""Steps after which a walk is within ``tolerance`` of its limit, whatever the graph.

    The iteration :math:`X_{t+1} = (1 - \alpha) G + \alpha S X_t` from :math:`X_0 = G` has the limit
    :math:`P_\infty` as its fixed point, so :math:`X_t - P_\infty = \alpha^t S^t (G - P_\infty)`. No
    row of the right-hand side has an absolute sum above :math:`2 \alpha^t \|G\|_\infty`, because
    :math:`\|S\|_\infty \le 1` and :math:`\|P_\infty\|_\infty \le \|G\|_\infty`.

    Args:
        alpha: probability that a walker moves on, at least 0 and below 1.
        tolerance: largest absolute sum of a row of the difference, above 0.
        row_sum: largest absolute sum of a row of the prior ``G``.

    Returns:
        The smallest ``t`` with ``2 · alpha**t · row_sum ≤ tolerance``.
    """
    if alpha == 0 or 2 * row_sum <= tolerance:
        return 0
    return math.ceil(math.log(tolerance / (2 * row_sum)) / math.log(alpha))


def relative_error(out: Tensor, expected: Tensor) -> float:
    """``‖out − expected‖ / ‖expected‖`` in float64, over all elements.

    Args:
        out, expected: of one shape, any floating dtype, on any device.
    """
    out, expected = out.double().cpu(), expected.double().cpu()
    return float((out - expected).norm() / expected.norm())
