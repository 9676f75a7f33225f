"""The window around each token of a grid, in window order: row by row, the token in the middle."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad


def clipped_radius(radius: int, grid: tuple[int, int]) -> int:
    """The smallest radius whose windows hold the same tokens of the grid; at least 1."""
    return min(radius, max(*grid, 2) - 1)


def shifted(maps: Tensor, radius: int) -> Iterator[Tensor]:
    """``maps (…, h, w)`` as seen from each window position in turn, 0 outside the grid."""
    h, w = maps.shape[-2:]
    padded = pad(maps, (radius,) * 4)
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            yield padded[..., dy : dy + h, dx : dx + w]


def inside(grid: tuple[int, int], radius: int, device: torch.device) -> Tensor:
    """``(N, (2r+1)²)`` bool: which window positions lie on the grid."""
    ones = torch.ones(grid, dtype=torch.bool, device=device)
    return torch.stack([view.flatten() for view in shifted(ones, radius)], dim=-1)


def columns(grid: tuple[int, int], radius: int, device: torch.device) -> Tensor:
    """``(N, (2r+1)²)`` int64: the token at each window position, 0 outside the grid."""
    tokens = torch.arange(grid[0] * grid[1], device=device).unflatten(0, grid)
    return torch.stack([view.flatten() for view in shifted(tokens, radius)], dim=-1)


def dense(values: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """The matrix ``(…, N, N)`` whose entries ``values (…, N, (2r+1)²)`` holds in window order."""
    rows = values.new_zeros(*values.shape[:-1], values.shape[-2])
    values = values.masked_fill(~inside(grid, radius, values.device), 0)
    return rows.scatter_add(-1, columns(grid, radius, values.device).expand_as(values), values)


def windows(A: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """The inverse of :func:`dense`: ``(…, N, N)`` in, ``(…, N, (2r+1)²)`` out."""
    token_at = columns(grid, radius, A.device).expand(*A.shape[:-1], -1)
    return A.gather(-1, token_at).masked_fill(~inside(grid, radius, A.device), 0)
