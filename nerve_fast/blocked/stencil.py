"""A matrix that couples each token to a window around it: values in window order, no indices.

Entry ``o`` of row ``i`` belongs to the token at the offset ``(o // (2r+1) − r, o % (2r+1) − r)``
from ``i``, so a pass over the matrix is a pass over ``(2r+1)²`` shifted views of the grid.

Where the rows of a grid are shared by processes, each has the matrix of its own rows, and what it
is multiplied with has a ``halo`` too: the rows of the grid within the radius above and below.
"""

import math

import torch
from torch import Tensor

from nerve_fast.normalization import Normalization
from nerve_fast.numerics import empty_row_floor, upcast
from nerve_fast.reference.walk import numerator, over_row_sum, softmax_rows
from nerve_fast.utils.windows import inside, shifted


def transition(
    values: Tensor,
    grid: tuple[int, int],
    radius: int,
    rule: Normalization,
    temperature: float,
    weight_sum: float | Tensor = 1.0,
    halo: tuple[int, int] = (0, 0),
) -> Tensor:
    """``S_local`` from a local affinity, ``(…, N, (2r+1)²)`` each, in float32 or better.

    Numerators over their row's absolute sum, the middle as it is; an empty row is the identity's.
    """
    values = upcast(values)
    middle = torch.zeros(values.shape[-1], dtype=torch.bool, device=values.device)
    middle[len(middle) // 2] = True
    identity = middle.to(values.dtype)
    above, width = halo[0] * grid[1], grid[1]
    on_grid = inside((grid[0] + sum(halo), width), radius, values.device)
    outside = ~on_grid[above : above + grid[0] * width]
    if rule.exponential:
        itself = values[..., len(middle) // 2, None]
        logits = torch.where(middle, itself.log(), (values - 1) / temperature)
        weights = softmax_rows(logits.masked_fill(outside, -math.inf), identity)
    else:
        weights = torch.where(middle, values, numerator(values, rule))
        floor = empty_row_floor(rule, values.dtype, values.shape[-1], weight_sum)
        weights = over_row_sum(weights.masked_fill(outside, 0), identity, floor)
    # One plane of the grid for each window position: what `matmul` reads in turn.
    return weights.mT.contiguous().mT


def matmul(
    weights: Tensor,
    grid: tuple[int, int],
    radius: int,
    x: Tensor,
    halo: tuple[int, int] = (0, 0),
) -> Tensor:
    """The matrix with the entries ``weights (…, N, (2r+1)²)`` times ``x (…, N, K)``.

    ``grid`` is that of the rows of the matrix; ``x`` has those of the ``halo`` around them too.
    """
    maps = x.mT.unflatten(-1, (grid[0] + sum(halo), grid[1]))  # (…, K, h, w)
    planes = weights.mT.unflatten(-1, grid)  # (…, (2r+1)², h, w)
    views = (view[..., halo[0] : halo[0] + grid[0], :] for view in shifted(maps, radius))
    total = planes[..., 0, None, :, :] * next(views)
    for offset, view in enumerate(views, start=1):
        total.addcmul_(planes[..., offset, None, :, :], view)
    return total.flatten(-2).mT
