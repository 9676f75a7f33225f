"""The random walk by three routes, none of which stores an affinity map a head."""

from collections.abc import Callable

import torch
from torch import Tensor

from nerve_fast.blocked import stencil
from nerve_fast.blocked.affinity import pack, packed_local
from nerve_fast.blocked.entropy import head_entropy
from nerve_fast.blocked.precision import product_dtype
from nerve_fast.blocked.tiles import MAX_COLUMNS, filled, recomputed, spans, tile_rows
from nerve_fast.numerics import EMPTY_ROW
from nerve_fast.reference.entropy import entropy_weights
from nerve_fast.reference.precision import upcast
from nerve_fast.reference.walk import series_sum

ROUNDING = 1e-5
"""Cosines and sums of weights exceed 1 by less than this part when they should not."""

MAX_EXPONENT = 50
"""Row sums of exponentials up to e^50 are far from overflow in float32."""

Step = Callable[[Tensor], Tensor]
"""``Y (N, K) -> S_global Y (N, K)``."""


def random_walk(
    q: Tensor,
    k: Tensor,
    prior: Tensor,
    grid: tuple[int, int],
    config,
    head_weights: Tensor | None,
    *,
    route: str,
    stored_rows: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """As :func:`nerve_fast.reference.random_walk`; members of a batch one after the other.

    Args:
        route: ``factorized`` (``shift`` and ``l1`` only), ``streaming`` or ``dense``.
        stored_rows: rows of ``S_global`` that the route ``dense`` keeps; it makes the others again
            each step.
        on_step: called after each step.
    """
    batch = q.shape[:-3]
    if batch:
        inputs = [x.reshape(-1, *x.shape[len(batch) :]) for x in (q, k, prior)]
        weights = [None] * len(inputs[0])
        if head_weights is not None:
            weights = head_weights.reshape(-1, head_weights.shape[-1])
        walked = [
            random_walk(
                *one, grid, config, w, route=route, stored_rows=stored_rows, on_step=on_step
            )
            for *one, w in zip(*inputs, weights, strict=True)
        ]
        return torch.stack(walked).unflatten(0, batch)

    G = upcast(prior).to(torch.promote_types(upcast(prior).dtype, upcast(q).dtype))
    if config.alpha == 0 or config.steps == 0:
        return G.clone()
    if head_weights is None:
        head_weights = _head_weights(q, k, config.sharpness)
    packed_q, packed_k = pack(q, k, head_weights)
    step = S_local = None
    if config.beta > 0:
        cells = Cells(grid, config.global_stride)
        pooled_k = cells.mean(packed_k)
        dtype = product_dtype(q.dtype, q.device)
        most = head_weights.sum().item()
        if route == "factorized":
            step = _factorized(packed_q, pooled_k, cells, config.normalization, dtype, most)
        else:
            rows = Rows(packed_q, pooled_k, cells, config, dtype, most)
            if route == "dense":
                rows.keep(stored_rows)
            step = rows.step
    if config.beta < 1:
        values = packed_local(packed_q, packed_k, grid, config.radius, config.self_affinity)
        S_local = stencil.transition(
            values, grid, config.radius, config.normalization, config.temperature
        )
    del packed_q, packed_k
    Y = G
    for _ in range(config.steps):
        moved = 0
        if config.beta > 0:
            moved = config.beta * step(Y)
        if config.beta < 1:
            moved = moved + (1 - config.beta) * stencil.matmul(S_local, grid, config.radius, Y)
        Y = torch.add(G, moved, alpha=config.alpha)
        on_step()
    return Y / series_sum(config.alpha, config.steps)


def _head_weights(q: Tensor, k: Tensor, sharpness: float) -> Tensor:
    if sharpness == 0:
        # The plain mean needs no entropies, which take N² operations where the walk may not.
        return upcast(q).new_full(q.shape[:-2], 1 / q.shape[-3])
    return entropy_weights(head_entropy(q, k), sharpness)


class Cells:
    """The coarser grid on which keys and values of the global part are pooled.

    Args:
        grid: of the tokens.
        stride: side of a cell in tokens; at 1 every token is its own cell.
    """

    def __init__(self, grid: tuple[int, int], stride: int):
        self.grid, self.stride = grid, stride

    def sum(self, x: Tensor) -> Tensor:
        """``(N, C)`` summed over each cell, ``(cells, C)``."""
        if self.stride == 1:
            return x
        h, w = self.grid
        s = self.stride
        tall, wide = -(-h // s), -(-w // s)
        maps = x.T.unflatten(1, self.grid)
        maps = torch.nn.functional.pad(maps, (0, wide * s - w, 0, tall * s - h))
        return maps.unflatten(2, (wide, s)).unflatten(1, (tall, s)).sum((2, 4)).flatten(1).T

    def mean(self, x: Tensor) -> Tensor:
        """``(N, C)`` averaged over each cell, ``(cells, C)``."""
        return x if self.stride == 1 else self.sum(x) / self.counts(x)

    def counts(self, like: Tensor) -> Tensor:
        """Tokens in each cell, ``(cells, 1)``."""
        return self.sum(like.new_ones(self.grid[0] * self.grid[1], 1))


def _signed(normalization: str, most: float) -> bool:
    """Whether numerators can be negative, so that a row's absolute sum is not its sum."""
    return normalization == "l1" or (normalization == "shift" and most > 1 + ROUNDING)


def _factorized(
    packed_q: Tensor,
    packed_k: Tensor,
    cells: Cells,
    normalization: str,
    dtype: torch.dtype,
    most: float,
) -> Step:
    """``Q̃ (K̃ᵀ Y)``: exact where a row is linear in the affinity.

    ``shift``: the numerators (1 + a) / 2 give ``(Σ Y + Q̃ (K̃ᵀ Y)) / (N + Q̃ (K̃ᵀ 1))``, the halves
    cancel. ``l1``: ``Q̃ (K̃ᵀ Y)`` over absolute row sums, found in one streaming pass.
    """
    counts = cells.counts(packed_k)
    shift = 1 if normalization == "shift" else 0
    if not _signed(normalization, most):
        total = counts.sum() + packed_q @ (packed_k.mT @ counts)
        # The sum is N minus nearly N in a row without mass: what rounding leaves is no mass.
        floor = 16 * torch.finfo(total.dtype).eps * counts.sum()
    else:
        total = _absolute_row_sums(packed_q, packed_k, counts, dtype, shift)
        floor = EMPTY_ROW * (1 + shift)
    empty = total <= floor

    def step(Y):
        pooled = cells.sum(Y)
        product = packed_q @ (packed_k.mT @ pooled) + shift * pooled.sum(0)
        return torch.where(empty, Y, product / total.masked_fill(empty, 1))

    return step


def _absolute_row_sums(
    packed_q: Tensor, packed_k: Tensor, counts: Tensor, dtype: torch.dtype, shift: int
) -> Tensor:
    """``Σ_j |shift + a_ij|``, ``(N, 1)``, without keeping ``a``."""

    def of_rows(q, k, n):
        total = 0
        for columns in spans(len(k), MAX_COLUMNS):
            A = (q @ k[columns].mT).to(n.dtype)
            total = total + (A + shift if shift else A).abs() @ n[columns]
        return total

    size = tile_rows(len(packed_k), packed_q.device, dtype.itemsize)
    q, k = packed_q.to(dtype), packed_k.to(dtype)
    out = counts.new_empty(len(q), 1)
    return filled(out, size, lambda rows: recomputed(of_rows, q[rows], k, counts))


class Rows:
    """``S_global`` in blocks of rows, each made when it is needed or kept from the start.

    Args:
        packed_q: ``Q̃ (N, C)``.
        packed_k: ``K̃ (cells, C)``.
        cells: on which ``Y`` is pooled.
        config: the walk's settings.
        dtype: of the products with ``K̃`` and of what is kept.
        most: what no affinity exceeds, the sum of the head weights.
    """

    def __init__(
        self, packed_q: Tensor, packed_k: Tensor, cells: Cells, config, dtype, most: float
    ):
        self.normalization = config.normalization
        self.cells = cells
        self.counts = cells.counts(packed_k)
        self.dtype = dtype
        if self.normalization == "softmax":
            packed_q = packed_q / config.temperature
        self.q, self.k = packed_q.to(dtype), packed_k.to(dtype)
        self.size = tile_rows(len(packed_k), packed_q.device, dtype.itemsize)
        self.offsets = packed_q.new_full((len(packed_q), 1), -1 / config.temperature)
        if (most * (1 + ROUNDING) - 1) / config.temperature > MAX_EXPONENT:
            # A row with mass above exp(0) is not empty; relative to its largest it cannot overflow.
            self.offsets = torch.minimum(self.offsets, -self._row_maxima())
        # Added in the tile's own dtype, a pass costs half as much; a row's rounding cancels out.
        self.offsets = self.offsets.to(dtype)
        self.kept: list[Tensor] = []
        self.totals = None
        if _signed(self.normalization, most):
            shift = 1 if self.normalization == "shift" else 0
            sums = _absolute_row_sums(packed_q, packed_k, self.counts, dtype, shift)
            self.totals = sums / (1 + shift)

    def keep(self, stored_rows: int) -> None:
        """Keep the first blocks of numerators, as many as ``stored_rows`` rows fill."""
        blocks = list(spans(len(self.q), self.size))
        for rows in blocks[: -(-stored_rows // self.size)]:
            numerators = self._numerators(self.q[rows], self.k, self.offsets[rows])
            self.kept.append(numerators.to(self.dtype))

    def step(self, Y: Tensor) -> Tensor:
        """``S_global Y``, ``(N, K)`` each."""
        # The row sums are one more column of the product.
        values = torch.cat([self.cells.sum(Y), self.counts.to(Y.dtype)], dim=1)

        def rows_of(rows):
            block = rows.start // self.size
            if block < len(self.kept):
                return self.kept[block] @ values.to(self.dtype)
            return recomputed(self._product, self.q[rows], self.k, self.offsets[rows], values)

        product = filled(values.new_empty(len(self.q), values.shape[1]), self.size, rows_of)
        total = product[:, -1:] if self.totals is None else self.totals
        empty = total <= EMPTY_ROW
        return torch.where(empty, Y, product[:, :-1] / total.masked_fill(empty, 1))

    def _product(self, q: Tensor, k: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
        total = 0
        for columns in spans(len(k), MAX_COLUMNS):
            numerators = self._numerators(q, k[columns], offsets)
            total = total + (numerators @ values[columns].to(numerators.dtype)).to(values.dtype)
        return total

    def _row_maxima(self) -> Tensor:
        def rows_of(rows):
            best = torch.full_like(self.offsets[rows], -torch.inf)
            for columns in spans(len(self.k), MAX_COLUMNS):
                A = self.q[rows] @ self.k[columns].mT
                best = torch.maximum(best, A.amax(-1, keepdim=True).to(best.dtype))
            return best

        return filled(torch.empty_like(self.offsets), self.size, rows_of)

    def _numerators(self, q: Tensor, k: Tensor, offsets: Tensor) -> Tensor:
        A = q @ k.mT
        if self.normalization == "softmax":
            return A.add_(offsets).exp_()
        if self.normalization == "relu":
            return A.relu_()
        if self.normalization == "shift":
            return A.add_(1).mul_(0.5)
        return A
