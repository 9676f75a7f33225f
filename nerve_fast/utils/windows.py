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


def beyond(
    grid: tuple[int, int], radius: int, halo: tuple[int, int] = (0, 0)
) -> Iterator[tuple[slice, slice, slice, slice]]:
    """The window entries outside the grid, as parts of ``(h, w, 2r+1, 2r+1)``; some come twice.

    ``halo``: how many more rows of the grid there are above and below.
    """
    everything = slice(None)
    for from_border in range(min(max(grid), radius)):
        near = radius - from_border
        lines = slice(from_border, from_border + 1), slice(-1 - from_border, -from_border or None)
        if from_border < grid[0]:
            for line, before, known in zip(lines, (True, False), halo, strict=True):
                if near > known:
                    yield line, everything, _ends(radius, near - known, before), everything
        if from_border < grid[1]:
            for line, before in zip(lines, (True, False), strict=True):
                if near > 0:
                    yield everything, line, everything, _ends(radius, near, before)


def _ends(radius: int, count: int, before: bool) -> slice:
    """The first or the last ``count`` of ``2r+1``."""
    return slice(count) if before else slice(2 * radius + 1 - count, None)


def emptied(values: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """A copy of ``values (…, N, (2r+1)²)`` that is 0 outside the grid."""
    side = 2 * radius + 1
    values = values.clone(memory_format=torch.contiguous_format)
    entries = values.view(-1, *grid, side, side)
    for rows, columns, dy, dx in beyond(grid, radius):
        entries[:, rows, columns, dy, dx] = 0
    return values


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
