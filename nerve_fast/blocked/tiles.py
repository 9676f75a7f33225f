"""The sizes of blocks, and their recomputation in the backward pass, which keeps no ``N × N``."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nerve_fast.numerics import wants_gradient
from nerve_fast.utils.tiles import CPU_TILE_BYTES, GPU_TILE_BYTES, spans

MAX_COLUMNS = 1024
"""Wider rows are cut into column tiles, so that a tile keeps enough rows for a fast product."""

LEAST_COLUMNS, COLUMN_STEP = 16, 8
"""Products with so many columns, or multiples of the step above it, are the fastest."""


def product_columns(columns: int) -> int:
    """The columns that a product with so many takes the least time with, those added being 0."""
    return max(-(-columns // COLUMN_STEP) * COLUMN_STEP, LEAST_COLUMNS)


def tile_rows(columns: int, device: torch.device, itemsize: int = 4) -> int:
    """Rows of a tile that is ``columns`` wide, of affinities of ``itemsize`` bytes; at least 16."""
    size = CPU_TILE_BYTES if device.type == "cpu" else GPU_TILE_BYTES
    return max(size // (itemsize * min(columns, MAX_COLUMNS)), 16)


def filled(out: Tensor, step: int, rows_of: Callable[[slice], Tensor]) -> Tensor:
    """``out`` with ``rows_of(rows)`` in each span of ``step`` rows.

    Results that are allocated between large tiles fragment the heap, so that freed tiles cannot be
    used again. They are therefore written into one tensor that is allocated before all tiles.
    """
    for rows in spans(len(out), step):
        out[rows] = rows_of(rows)
    return out


def recomputed(function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """``function(*inputs)``; where gradients are wanted, the backward pass recomputes its tiles."""
    if wants_gradient(*inputs):
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)
