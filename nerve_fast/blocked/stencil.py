"""A matrix that couples each token to a window around it: values in window order, no indices.

Entry ``o`` of row ``i`` belongs to the token at the offset ``(o // (2r+1) − r, o % (2r+1) − r)``
from ``i``. Where rows of a grid are shared by processes, each has the matrix of its own rows, and
what it is multiplied with has a ``halo`` too: the rows of the grid within the radius above and
below.
"""

import functools
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from nerve_fast.normalization import Normalization
from nerve_fast.numerics import empty_row_floor, upcast, wants_gradient
from nerve_fast.reference.walk import numerator, over_row_sum, series_sum, softmax_rows
from nerve_fast.utils.windows import beyond, emptied, inside, shifted

FEW_ENTRIES = 1 << 18
"""Entries of a matrix up to which their places are kept for the next one, 4 bytes each."""

# torch says so once a process, of the very product that is used here.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


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
        return softmax_rows(logits.masked_fill(outside, -math.inf), identity)
    weights = torch.where(middle, values, numerator(values, rule))
    floor = empty_row_floor(rule, values.dtype, values.shape[-1], weight_sum)
    return over_row_sum(weights.masked_fill(outside, 0), identity, floor)


class Window:
    """The matrix of one grid, in the form that is fastest to multiply with again and again.

    On a CPU with MKL these are sparse rows (CSR) of ``(2r+1)²`` entries each, whose columns take 4
    bytes an entry; entries beyond the grid couple a token to itself. Elsewhere, and where gradients
    are wanted, it is one plane of the grid for each window position, and a product is a pass over
    as many shifted views.

    Args:
        weights: ``(N, (2r+1)²)``, float32 or float64; 0 beyond the grid.
        grid: ``(h, w)`` of the rows of the matrix.
        radius: ``r``.
        halo: rows of the grid above and below, which the other factor has too.
        gradient: whether one is wanted, of the matrix or of what it is multiplied with.
    """

    def __init__(
        self,
        weights: Tensor,
        grid: tuple[int, int],
        radius: int,
        halo: tuple[int, int] = (0, 0),
        gradient: bool = False,
    ):
        self.grid, self.radius, self.halo, self.gradient = grid, radius, halo, gradient
        self.sparse = not gradient and _has_sparse_products(weights)
        if self.sparse:
            self.weights = _sparse_rows(weights, grid, radius, halo)
        else:
            self.weights = weights.mT.contiguous().unflatten(-1, grid)  # ((2r+1)², h, w)

    def added(self, total: Tensor, x: Tensor, scale: float) -> Tensor:
        """``total + scale · S x``; without gradients ``total`` is overwritten.

        ``x (N', K)`` has the tokens of the grid and its halo, ``total (N, K)`` those of the grid.
        """
        if self.sparse:
            return total.addmm_(self.weights, x, alpha=scale)
        height, width = self.grid
        maps = x.mT.unflatten(-1, (-1, width))  # (K, h', w)
        views = (
            view[..., self.halo[0] :, :][..., :height, :] for view in shifted(maps, self.radius)
        )
        product = self.weights[0] * next(views)
        for plane, view in zip(self.weights[1:], views, strict=True):
            product.addcmul_(plane, view)
        product = product.flatten(-2).mT
        if self.gradient:
            return torch.add(total, product, alpha=scale)
        return total.add_(product, alpha=scale)


def matmul(weights: Tensor, grid: tuple[int, int], radius: int, x: Tensor) -> Tensor:
    """The matrix with the entries ``weights (…, N, (2r+1)²)`` times ``x (…, N, K)``."""

    def product(window: Window, x: Tensor) -> Tensor:
        return window.added(torch.zeros_like(x), x, 1.0)

    return _of_members(product, weights, grid, radius, x)


def power_series(
    weights: Tensor, grid: tuple[int, int], radius: int, G: Tensor, alpha: float, steps: int
) -> Tensor:
    """As :func:`nerve_fast.reference.local_series`; without gradients two ``Y`` take turns."""

    def walked(window: Window, G: Tensor) -> Tensor:
        Y = G
        spare: list[Tensor] = []
        if not window.gradient:
            # New memory costs more than the arithmetic.
            spare = [torch.empty_like(G) for _ in range(min(steps, 2))]
        for t in range(steps):
            total = spare[t % 2].copy_(G) if spare else G
            Y = window.added(total, Y, alpha)
        return Y / series_sum(alpha, steps)

    return _of_members(walked, weights, grid, radius, G)


def _of_members(
    function: Callable[[Window, Tensor], Tensor],
    weights: Tensor,
    grid: tuple[int, int],
    radius: int,
    x: Tensor,
) -> Tensor:
    """``function`` of each member of a batch, ``(…, N, K)``; leading dimensions broadcast."""
    gradient = wants_gradient(weights, x)
    weights = emptied(weights, grid, radius)
    batch = torch.broadcast_shapes(weights.shape[:-2], x.shape[:-2])
    if not batch:
        return function(Window(weights, grid, radius, gradient=gradient), x)
    members = [
        function(Window(one, grid, radius, gradient=gradient), one_x)
        for one, one_x in zip(
            weights.expand(*batch, *weights.shape[-2:]).reshape(-1, *weights.shape[-2:]),
            x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:]),
            strict=True,
        )
    ]
    return torch.stack(members).unflatten(0, batch)


def _has_sparse_products(weights: Tensor) -> bool:
    """Whether MKL multiplies such a matrix, with column indices of 32 bits."""
    return (
        weights.device.type == "cpu"
        and torch.backends.mkl.is_available()
        and weights.numel() < 2**31
    )


def _sparse_rows(
    weights: Tensor, grid: tuple[int, int], radius: int, halo: tuple[int, int]
) -> Tensor:
    """The matrix in CSR form, ``(N, N')``; ``weights`` stay where they are if they are in order."""
    tokens = math.prod(grid)
    places = _known_places if weights.numel() <= FEW_ENTRIES else _places
    starts, columns = places(grid, radius, halo)
    return torch.sparse_csr_tensor(
        starts,
        columns,
        weights.contiguous().view(-1),
        size=(tokens, tokens + sum(halo) * grid[1]),
        check_invariants=False,
    )


def _places(grid: tuple[int, int], radius: int, halo: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where each row's entries start, ``(N + 1,)``, and the column of each, ``(N · (2r+1)²,)``."""
    (height, width), side = grid, 2 * radius + 1
    tokens = height * width
    # Kept ones outlive the mode that the first call is in.
    with torch.inference_mode(False):
        steps = torch.arange(-radius, radius + 1, dtype=torch.int32)
        own = torch.arange(tokens, dtype=torch.int32).add_(halo[0] * width)
        own = own.view(height, width, 1, 1)
        columns = own + (steps[:, None] * width + steps)
        for part in beyond(grid, radius, halo):
            columns[part] = own[part[:2]]
        starts = torch.arange(0, tokens * side**2 + 1, side**2, dtype=torch.int32)
        return starts, columns.view(-1)


_known_places = functools.lru_cache(maxsize=4)(_places)
"""They depend on the grid alone, and images often have the same."""
