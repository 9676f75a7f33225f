"""Cosine affinity of all pairs of tokens, and of tokens with neighbours (slides 4.2, 4.3)."""

import torch
from torch import Tensor

from nerve_fast.numerics import unit_vectors


def cosine_affinity(q: Tensor, k: Tensor, head_weights: Tensor | None = None) -> Tensor:
    r"""Affinity of all pairs of tokens.

    .. math:: A^{(h)}_{ij} = \frac{\langle q_i, k_j \rangle}{\|q_i\| \|k_j\|}, \quad
              A = \sum_h w_h A^{(h)}

    Args:
        q, k: ``(…, H, N, D)``.
        head_weights: ``w``, ``(…, H)``.

    Returns:
        ``A (…, N, N)``, or ``A^(h) (…, H, N, N)`` without ``head_weights``.
    """
    A = unit_vectors(q) @ unit_vectors(k).mT
    if head_weights is None:
        return A
    w = head_weights.to(A.dtype)
    return (w[..., None, None] * A).sum(-3)


def neighbours(grid: tuple[int, int], radius: int, device: torch.device) -> Tensor:
    """``j ∈ N(i)``: the ``(2r+1)²`` window around ``i`` less ``i`` itself, clipped at the border.

    Returns:
        ``(N, N)`` bool.
    """
    h, w = grid
    token = torch.arange(h * w, device=device)
    y, x = token // w, token % w
    near_y = (y[:, None] - y).abs() <= radius
    near_x = (x[:, None] - x).abs() <= radius
    return near_y & near_x & (token[:, None] != token)


def keep_local(A: Tensor, grid: tuple[int, int], radius: int, self_affinity: float) -> Tensor:
    """``ε_self`` on the diagonal, ``A[i, j]`` for ``j ∈ N(i)``, 0 elsewhere; ``(…, N, N)``."""
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return A * neighbours(grid, radius, A.device) + self_affinity * eye


def local_affinity(
    q: Tensor,
    k: Tensor,
    grid: tuple[int, int],
    head_weights: Tensor | None,
    radius: int,
    self_affinity: float,
) -> Tensor:
    """The local affinity in window order: row by row of the window, 0 outside the grid.

    Returns:
        ``(…, N, (2r+1)²)``, or ``(…, H, N, (2r+1)²)`` without ``head_weights``.
    """
    A = keep_local(cosine_affinity(q, k, head_weights), grid, radius, self_affinity)
    h, w = grid
    token = torch.arange(h * w, device=A.device)
    step = torch.arange(-radius, radius + 1, device=A.device)
    side = len(step)
    y = (token // w)[:, None] + step.repeat_interleave(side)
    x = (token % w)[:, None] + step.repeat(side)
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    j = torch.where(inside, y * w + x, 0)
    return torch.where(inside, A.gather(-1, j.expand(*A.shape[:-1], -1)), 0)
