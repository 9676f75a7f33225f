"""The local transition matrix and its product, by way of the dense matrix."""

from torch import Tensor

from nerve_fast.normalization import Normalization
from nerve_fast.numerics import upcast
from nerve_fast.reference.walk import power_series, transition_local
from nerve_fast.utils.windows import dense, windows


def local_transition(
    values: Tensor, grid: tuple[int, int], radius: int, rule: Normalization, temperature: float
) -> Tensor:
    """``S_local`` from a local affinity, ``(…, N, (2r+1)²)`` each, in float32 or better.

    The middle of a window holds ``ε_self``, which enters as it is.
    """
    A = dense(upcast(values), grid, radius)
    itself = A.diagonal(dim1=-2, dim2=-1)
    return windows(transition_local(A, itself, grid, radius, rule, temperature), grid, radius)


def local_matmul(weights: Tensor, grid: tuple[int, int], radius: int, x: Tensor) -> Tensor:
    """The matrix with the entries ``weights (…, N, (2r+1)²)`` times ``x (…, N, K)``."""
    return dense(weights, grid, radius) @ x


def local_series(
    weights: Tensor, grid: tuple[int, int], radius: int, G: Tensor, alpha: float, steps: int
) -> Tensor:
    """``P_L`` of :func:`nerve_fast.reference.walk.power_series`, the matrix being ``S``."""
    S = dense(weights, grid, radius)
    return power_series(lambda Y, G: G + alpha * (S @ Y), G, alpha, [steps])[steps]
