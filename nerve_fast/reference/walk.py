"""Transition probabilities and the random walk they drive (slides 4.1 and 4.4)."""

import math

import torch
from torch import Tensor

from nerve_fast.numerics import EMPTY_ROW
from nerve_fast.reference.affinity import cosine_affinity, neighbours
from nerve_fast.reference.entropy import entropy_weights, head_entropy
from nerve_fast.reference.precision import upcast


def numerator(A: Tensor, normalization: str) -> Tensor:
    """What stands above the row sum, for all but ``softmax``; element by element, any shape."""
    return {"relu": A.clamp(min=0), "l1": A, "shift": (1 + A) / 2}[normalization]


def over_row_sum(A: Tensor, identity: Tensor) -> Tensor:
    """Rows of ``A`` over their absolute sums; an empty row becomes that of ``identity``."""
    total = A.abs().sum(-1, keepdim=True)
    empty = total <= EMPTY_ROW
    return torch.where(empty, identity, A / total.masked_fill(empty, 1))


def softmax_rows(logits: Tensor, identity: Tensor) -> Tensor:
    """The same for rows of ``exp(logits)``, which are never formed: they might overflow."""
    total = logits.logsumexp(-1, keepdim=True)
    empty = total <= math.log(EMPTY_ROW)
    return torch.where(empty, identity, logits.masked_fill(empty, 0).softmax(-1))


def coarsen(A: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Every column of ``A`` becomes the mean of the columns in its ``stride × stride`` cell.

    This is what keys and values pooled on a coarser grid do to the walk, written on the full one:
    ``Σ_j f(A'_ij) Y_j = Σ_c n_c f(A'_ic) mean_c(Y)``. ``stride = 1`` changes nothing.
    """
    if stride == 1:
        return A
    h, w = grid
    token = torch.arange(h * w, device=A.device)
    cell = (token // w // stride) * w + (token % w) // stride
    same_cell = (cell[:, None] == cell).to(A.dtype)
    return A @ (same_cell / same_cell.sum(0))


def transition(A: Tensor, grid: tuple[int, int], config) -> Tensor:
    r"""The transition matrix: ``A (…, N, N)`` in, ``S (…, N, N)`` out.

    .. math:: S = \beta S_{global} + (1 - \beta) S_{local}

    ``S_global`` takes all columns of ``A``; ``S_local`` those in the window, and ``ε_self`` as it
    is on the diagonal. Each row sums to 1; with ``l1`` the absolute values of either part do.
    """
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    diagonal = eye.bool()
    elsewhere = ~(neighbours(grid, config.radius, A.device) | diagonal)
    A_global = coarsen(A, grid, config.global_stride)
    if config.normalization == "softmax":
        # exp((a−1)/τ) with everything in the exponent, ε_self too.
        log_self = math.log(config.self_affinity) if config.self_affinity else -math.inf
        logits = ((A - 1) / config.temperature).masked_fill(diagonal, log_self)
        S_global = softmax_rows((A_global - 1) / config.temperature, eye)
        S_local = softmax_rows(logits.masked_fill(elsewhere, -math.inf), eye)
    else:
        A_local = numerator(A, config.normalization).masked_fill(elsewhere, 0)
        S_global = over_row_sum(numerator(A_global, config.normalization), eye)
        S_local = over_row_sum(A_local.masked_fill(diagonal, config.self_affinity), eye)
    return config.beta * S_global + (1 - config.beta) * S_local


def power_series(S: Tensor, G: Tensor, alpha: float, steps: int) -> Tensor:
    r"""Expected label of a walker that moves on with probability ``α``, at most ``L`` times.

    .. math:: P_L = \frac{1 - \alpha}{1 - \alpha^{L+1}} \sum_{t=0}^{L} \alpha^t S^t G

    By Horner's rule. ``α = 1`` is the limit, the mean of the ``L + 1`` terms.

    Args:
        S: ``(…, N, N)``.
        G: ``(…, N, K)``.

    Returns:
        ``P_L (…, N, K)``.
    """
    Y = G
    for _ in range(steps):
        Y = G + alpha * (S @ Y)
    return Y / series_sum(alpha, steps)


def series_sum(alpha: float, steps: int) -> float:
    """``Σ α^t``, t = 0…L: ``(1−α^{L+1})/(1−α)`` without the 0/0 at ``α = 1``."""
    return sum(alpha**t for t in range(steps + 1))


def random_walk(
    q: Tensor, k: Tensor, prior: Tensor, grid: tuple[int, int], config, head_weights: Tensor | None
) -> Tensor:
    """The whole graph stage: entropy, weights, affinity, transition, walk.

    Args:
        q, k: ``(…, H, N, D)``.
        prior: ``G``, ``(…, N, K)``.
        config: a :class:`nerve_fast.NerveConfig`.
        head_weights: ``(…, H)``; ``None`` takes them from the heads' entropies.

    Returns:
        ``P_L (…, N, K)``.
    """
    w = head_weights
    if w is None:
        w = entropy_weights(head_entropy(q, k), config.sharpness)
    S = transition(cosine_affinity(q, k, w), grid, config)
    return power_series(S, upcast(prior).to(S.dtype), config.alpha, config.steps)
