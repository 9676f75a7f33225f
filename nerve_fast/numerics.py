"""Bounds of errors and of values, shared by the package, its tests and its benchmarks."""

import math
import numbers
import sys
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

EMPTY_ROW = 1e-12
"""A row whose absolute sum is not above this moves nowhere: it becomes the identity's row."""

NORM_FLOOR = 1e-12
"""Shorter vectors are divided by this instead of their norm, as ``normalize`` of torch does."""

LARGEST = 1e30
"""Larger values, and the inverses of smaller ones, leave the range of float32 sums."""

MAX_EXPONENT = 50
"""Row sums of exponentials up to e^50 stay far below the largest float32."""

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


def empty_row_floor(rule, dtype: torch.dtype, columns: int, weight_sum=1.0):
    """The absolute row sum up to which a row holds nothing but rounding, and counts as empty.

    Where heads cancel, each entry of a row is the rounding of a sum of terms that add up to
    ``weight_sum`` in absolute value: measured, a tenth of the dtype's epsilon on average, and less
    in 16 bits, whose sums are in float32. An offset of the rule takes part in the sum.

    Args:
        rule: a :class:`nerve_fast.normalization.Normalization` that is not exponential.
        dtype: of the products that the affinities come from.
        columns: entries of the row.
        weight_sum: sum of the head weights, a number or a tensor.

    Returns:
        At least :data:`EMPTY_ROW`; a tensor where ``weight_sum`` is one.
    """
    share = 1 / 4 if dtype.itemsize >= 4 else 1 / 16
    per_entry = share * rule.scale * weight_sum + 16 * abs(rule.offset)
    floor = torch.finfo(dtype).eps * columns * per_entry
    if isinstance(floor, Tensor):
        return floor.clamp(min=EMPTY_ROW)
    return max(floor, EMPTY_ROW)


def wants_gradient(*inputs: Tensor | None) -> bool:
    """Whether a gradient of one of the inputs is wanted, backwards or forwards."""
    given = [x for x in inputs if x is not None]
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        return True
    return any(forward_ad.unpack_dual(x).tangent is not None for x in given)


def unit_vectors(x: Tensor) -> Tensor:
    """``x (…, D)`` over its norms, in float32 or better; a vector of zeros stays one.

    Each vector is first scaled by a power of two near its largest magnitude, so that no square
    leaves the range of the dtype; this changes no other digit.
    """
    x = upcast(x)
    x = x / power_of_two(x)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=NORM_FLOOR)


def with_norms(x: Tensor, norms: Tensor, out: Tensor | None = None) -> Tensor:
    """:func:`unit_vectors` of ``x (…, D)`` times ``norms (…, 1)``, in fewer passes.

    Args:
        x: of any float dtype and memory layout.
        norms: of the result; a negative one turns its vector around.
        out: where the result is written, float32 or better; not where a gradient is wanted, and
            ``None`` makes a new tensor.
    """
    if wants_gradient(x, norms):
        return unit_vectors(x) * norms.to(upcast(x).dtype)
    if out is None:
        out = torch.empty(x.shape, dtype=upcast(x.new_empty(0)).dtype, device=x.device)
    if x.dtype != out.dtype:
        x = out.copy_(x)
    norm = _norms_in_range(x)
    if norm is None:
        x = torch.div(x, power_of_two(x), out=out)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=NORM_FLOOR)
    return torch.mul(x, norms.to(x.dtype) / norm, out=out)


def _norms_in_range(x: Tensor) -> Tensor | None:
    """The norms, where no square that matters to them left the range of the dtype.

    To know that spares a CPU two passes over ``x``; a GPU would have to wait for the answer.
    """
    if x.device.type != "cpu" or not x.numel():
        return None
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    info = torch.finfo(x.dtype)
    least, largest = norm.aminmax()
    in_range = least > info.tiny**0.4 and largest < info.max**0.45
    return norm if in_range else None


def power_of_two(x: Tensor) -> Tensor:
    """A power of two within a factor of 4 of the largest magnitude of each vector, ``(…, 1)``.

    A constant for gradients, and 1 for a vector of zeros.
    """
    x = x.detach()
    # On a CPU the norm of order ∞ takes many times as long.
    largest = upcast(torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True)))
    # Smaller ones have no exact half, and need none: their squares are within range after it.
    largest = torch.where(largest == 0, 1, largest.clamp(min=4 * torch.finfo(largest.dtype).tiny))
    mantissa, _ = torch.frexp(largest)
    return largest / 2 / mantissa


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


def is_finite(value: Any) -> bool:
    """Whether a real number is finite as a float; whole numbers may exceed a float's range."""
    # Comparisons alone: torch.compile may trace the number as a symbol.
    bounded = isinstance(value, numbers.Rational)
    if bounded:
        return -sys.float_info.max <= value <= sys.float_info.max
    return -math.inf < value < math.inf
