"""The random walk by three routes, none of which stores an affinity map a head."""

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from nerve_fast.blocked import stencil
from nerve_fast.blocked.affinity import local_member
from nerve_fast.blocked.entropy import entropy_of_all
from nerve_fast.blocked.packing import pack_keys, pack_queries
from nerve_fast.blocked.precision import product_dtype
from nerve_fast.blocked.tiles import (
    MAX_COLUMNS,
    filled,
    product_columns,
    recomputed,
    tile_rows,
)
from nerve_fast.clusters import Clusters
from nerve_fast.normalization import Normalization
from nerve_fast.numerics import EMPTY_ROW, MAX_EXPONENT, empty_row_floor, upcast, wants_gradient
from nerve_fast.reference.entropy import entropy_weights
from nerve_fast.reference.walk import walk_along
from nerve_fast.shares import Share
from nerve_fast.utils.cores import at_once, on_cores
from nerve_fast.utils.tiles import Scratch, spans
from nerve_fast.walked import Walked

ROUNDING = 1e-5
"""Relative amount by which rounding may raise a cosine or a sum of weights above 1."""

KEPT_ROWS = 1024
"""Rows of a kept block: products of larger ones are no faster."""

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
    return_steps: Collection[int] = (),
    on_step: Callable[[], None] | None = None,
    clusters: Clusters | None = None,
    share: Share | None = None,
) -> Walked:
    """As :func:`nerve_fast.reference.random_walk`; members of a batch one after the other.

    On a CPU small ones have a core each, as :func:`nerve_fast.utils.cores.at_once` says.

    Args:
        grid: of all tokens, those of other processes too.
        route: ``factorized`` (linear rules only), ``streaming`` or ``dense``.
        stored_rows: rows of ``S_global`` that the route ``dense`` keeps; it recomputes the others
            at each step.
        on_step: called after each step of each member.
        clusters: of the keys of the global part; ``None`` takes them one by one.
        share: which rows of the grid ``q``, ``k`` and ``prior`` hold, and the result; ``None``: all
            of them.
    """
    share = share or Share(grid)
    batch = q.shape[:-3]
    inputs = [x.reshape(-1, *x.shape[len(batch) :]) for x in (q, k, prior)]
    weights: Sequence[Tensor | None] = [None] * len(inputs[0])
    if head_weights is not None:
        weights = head_weights.reshape(-1, head_weights.shape[-1]).unbind()
    grouped: Sequence[Clusters | None] = [None] * len(inputs[0])
    if clusters is not None:
        grouped = clusters.members()
    way = (route, stored_rows, return_steps, on_step)
    together = 1
    if share.alone and not wants_gradient(*inputs, head_weights):
        together = at_once(len(inputs[0]), share.tokens, q.device)

    def walked(member) -> Walked:
        one_q, one_k, one_prior, w, one_clusters = member
        return _walk_member(one_q, one_k, one_prior, share, config, w, one_clusters, *way)

    members = on_cores(walked, zip(*inputs, weights, grouped, strict=True), together)
    if not batch:
        return members[0]
    return Walked(
        torch.stack([member.probabilities for member in members]).unflatten(0, batch),
        {
            t: torch.stack([member.at_steps[t] for member in members]).unflatten(0, batch)
            for t in return_steps
        },
        max(member.steps_taken for member in members),
    )


def _walk_member(
    q, k, prior, share, config, head_weights, clusters, route, stored_rows, return_steps, on_step
) -> Walked:
    """The walk of one member of a batch, ``(H, N, D)`` and ``(N, K)``."""
    G = upcast(prior).to(torch.promote_types(upcast(prior).dtype, upcast(q).dtype))
    moves = config.steps is None or max([config.steps, *return_steps]) > 0
    if config.alpha == 0 or not moves:
        # Nothing moves, so no affinity is needed.
        return Walked(G.clone(), {t: G.clone() for t in return_steps}, config.steps or 0)
    if head_weights is None:
        head_weights = _head_weights(q, k, config.sharpness, share)
    weight_sum = upcast(head_weights.detach()).sum().item()
    step: Callable[[Tensor], Tensor] | None = None
    window: stencil.Window | None = None
    gradient = wants_gradient(G, q, k, head_weights)
    grid, radius, halo = share.own_grid, config.radius, share.halo(config.radius)
    if config.beta < 1:
        around = _around(k, radius, share)
        S_local = stencil.transition(
            local_member(q, around, head_weights, grid, radius, config.self_affinity, halo),
            grid,
            radius,
            config.rule,
            config.temperature,
            weight_sum,
            halo,
        )
        window = stencil.Window(S_local, grid, radius, halo, gradient)
        del around, S_local
    if config.beta > 0:
        # Of clusters only the means are kept, before the queries are packed.
        keys = Keys(k, clusters, share)
        packed_q = queries(q, head_weights, config)
        dtype = product_dtype(q.dtype, q.device)
        if route == "factorized":
            step = _factorized(packed_q, keys, config.rule, dtype, weight_sum)
        else:
            rows = Rows(packed_q, keys, config, dtype, weight_sum, gradient)
            if route == "dense":
                rows.keep(stored_rows)
            step = rows.step
        del packed_q

    def advance(Y, source):
        if step is None:
            total = source.clone()
        else:
            stepped = step(Y)
            # New memory costs more than the sum.
            out = None if gradient else stepped
            total = torch.add(source, stepped, alpha=config.alpha * config.beta, out=out)
        if window is not None:
            near = share.around(Y, radius)
            total = window.added(total, near, config.alpha * (1 - config.beta))
        return total

    told = on_step or (lambda: None)
    return walk_along(advance, G, config, return_steps, told, share.largest)


def _around(k: Tensor, radius: int, share: Share) -> Tensor:
    """The own keys ``(H, n, D)`` with those of the halo before and after them."""
    if share.alone:
        return k
    rows = share.around(k.transpose(-3, -2).flatten(-2), radius)
    return rows.unflatten(-1, (len(k), -1)).transpose(-3, -2)


def queries(q: Tensor, head_weights: Tensor, config) -> Tensor:
    """``Q̃``, over ``τ`` where it goes into an exponent."""
    if config.rule.exponential:
        head_weights = upcast(head_weights) / config.temperature
    return pack_queries(q, head_weights)


def _head_weights(q: Tensor, k: Tensor, sharpness: float, share: Share) -> Tensor:
    if sharpness == 0:
        # The plain mean needs no entropies, which take N² operations even where the walk does not.
        return upcast(q).new_full(q.shape[:-2], 1 / q.shape[-3])
    return entropy_weights(entropy_of_all(q, k, share), sharpness)


class Keys:
    """The keys of the global part, of all processes, one by one or in clusters.

    Args:
        k: ``(H, N, D)``, the own tokens'.
        clusters: of the tokens; ``None`` takes them one by one.
        share: which tokens are own ones.

    Attributes:
        counts: ``(M, 1)``, how many tokens each cluster has.
        tokens: ``N``.
    """

    def __init__(self, k: Tensor, clusters: Clusters | None, share: Share):
        self.clusters, self.share, self.tokens = clusters, share, share.tokens
        if clusters is None:
            self._own = pack_keys(k)
            self.counts = self._own.new_ones(self.tokens, 1)
        else:
            # A head at a time, as all of them packed take more than all else.
            self._own = torch.cat([clusters.means(pack_keys(head[None])) for head in k], 1)
            self.counts = clusters.sizes[:, None].to(self._own.dtype)

    def means(self, dtype: torch.dtype) -> Tensor:
        """``(M, C)``, the mean of each cluster; where there are none, all keys are gathered."""
        own = self._own.to(dtype)
        return self.share.gathered(own) if self.clusters is None else own

    def sums(self, Y: Tensor) -> Tensor:
        """``(N, K)`` summed over each cluster, ``(M, K)``: what a step exchanges."""
        return self.share.gathered(Y) if self.clusters is None else self.clusters.sums(Y)

    def moments(self, Y: Tensor) -> tuple[Tensor, Tensor]:
        """``K̃ᵀ Y (C, K)`` and ``Σ Y (K,)`` over all keys."""
        if self.clusters is not None:
            values = self.clusters.sums(Y)
            return (values.mT @ self._own).mT, values.sum(0)
        # The other way round the product takes longer.
        found = (Y.mT @ self._own).mT, Y.sum(0)
        if self.share.alone:
            return found
        whole = self.share.total(torch.cat([found[0], found[1][None]]))
        return whole[:-1], whole[-1]

    def whole(self, x: Tensor) -> Tensor:
        """Sums over all keys, from sums over those that :meth:`means` gives."""
        return x

    def largest(self, x: Tensor) -> Tensor:
        """The largest over all keys, from the largest over those that :meth:`means` gives."""
        return x


class SpreadKeys(Keys):
    """All keys, which stay where they are: for queries that all processes have alike."""

    def __init__(self, k: Tensor, share: Share):
        super().__init__(k, None, share)
        self.counts = self._own.new_ones(len(self._own), 1)

    def means(self, dtype: torch.dtype) -> Tensor:
        return self._own.to(dtype)

    def sums(self, Y: Tensor) -> Tensor:
        return Y

    def whole(self, x: Tensor) -> Tensor:
        return self.share.total(x)

    def largest(self, x: Tensor) -> Tensor:
        return self.share.largest(x)


def _factorized(
    packed_q: Tensor,
    keys: Keys,
    rule: Normalization,
    dtype: torch.dtype,
    weight_sum: float,
) -> Step:
    """``Q̃ (K̃ᵀ Y)``: exact where a row is linear in the affinity.

    With the numerators over ``scale``, ``a + b`` where ``b = offset / scale``, the product is
    ``b Σ Y + Q̃ (K̃ᵀ Y)`` and the row sum ``b N + Q̃ (K̃ᵀ 1)``. Where numerators can be negative,
    the absolute row sums are found in one streaming pass instead.
    """
    shift = rule.offset / rule.scale
    if rule.signed:
        total = _absolute_row_sums(packed_q, keys.means(dtype), keys.counts, dtype, shift)
    else:
        products, tokens = keys.moments(packed_q.new_ones(len(packed_q), 1))
        total = shift * tokens + packed_q @ products
        # Nothing here is rounded to 16 bits.
        dtype = total.dtype
    empty = total <= empty_row_floor(rule, dtype, keys.tokens, weight_sum) / rule.scale
    divisor = total.masked_fill(empty, 1)

    def step(Y):
        products, sums = keys.moments(Y)
        products = pad(products, (0, product_columns(len(sums)) - len(sums)))
        product = (packed_q @ products)[:, : len(sums)] + shift * sums
        return _where_empty(empty, Y, product / divisor)

    return step


def _where_empty(empty: Tensor, own: Tensor, found: Tensor) -> Tensor:
    """``found (N, K)``, and ``own`` in the rows that are ``empty (N, 1)``; never ``own`` itself.

    To see that there are none spares a CPU a pass and new memory; a GPU would have to wait for it.
    """
    if empty.device.type == "cpu" and not empty.any():
        return found
    return torch.where(empty, own, found)


def _absolute_row_sums(
    packed_q: Tensor, packed_k: Tensor, counts: Tensor, dtype: torch.dtype, shift: float
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
    """``S_global`` in blocks of rows; each is recomputed when it is needed, or kept.

    Args:
        packed_q: ``Q̃ (N, C)`` as :func:`queries` gives it.
        keys: of the global part.
        config: the walk's settings.
        dtype: of the products with ``K̃`` and of what is kept.
        weight_sum: the sum of the head weights, which no affinity exceeds.
        gradient: whether one is wanted, of these or of what they are multiplied with.
    """

    def __init__(
        self,
        packed_q: Tensor,
        keys: Keys,
        config,
        dtype: torch.dtype,
        weight_sum: float,
        gradient: bool,
    ):
        self.rule = config.rule
        self.keys = keys
        self.k, self.counts = keys.means(dtype), keys.counts
        self.dtype = dtype
        self.q = packed_q.to(dtype)
        self.size = tile_rows(len(self.k), packed_q.device, dtype.itemsize)
        self.scratch = Scratch(self.q, gradient)
        self.floor = EMPTY_ROW
        if not self.rule.exponential:
            self.floor = empty_row_floor(self.rule, dtype, keys.tokens, weight_sum)
        self.offsets: Tensor | None = None
        largest = weight_sum * (1 + ROUNDING) / config.temperature
        if self.rule.exponential and dtype != torch.float16 and largest <= MAX_EXPONENT:
            # exp(a/τ) in place of exp((a − 1)/τ): a factor of all rows and of what is no mass.
            self.floor *= math.exp(1 / config.temperature)
        elif self.rule.exponential:
            offsets = packed_q.new_full((len(packed_q), 1), -1 / config.temperature)
            if largest - 1 / config.temperature > MAX_EXPONENT:
                # A row with mass above exp(0) is not empty; relative to its largest it cannot
                # overflow.
                offsets = torch.minimum(offsets, -self._row_maxima(offsets))
            # Added in the tile's own dtype, a pass costs half as much; a row's rounding cancels
            # out.
            self.offsets = offsets.to(dtype)
        self.kept: list[Tensor] = []
        self.totals = None
        if self.rule.signed:
            shift = self.rule.offset / self.rule.scale
            sums = _absolute_row_sums(packed_q, self.k, self.counts, dtype, shift)
            self.totals = keys.whole(sums) * self.rule.scale

    def keep(self, stored_rows: int) -> None:
        """Keep the numerators of the first ``stored_rows`` rows."""
        for rows in spans(min(stored_rows, len(self.q)), KEPT_ROWS):
            out = None
            if not self.scratch.gradient:
                out = self.q.new_empty(rows.stop - rows.start, len(self.k))
            self.kept.append(self._numerators(self.q[rows], self.k, self._offsets(rows), out))

    def step(self, Y: Tensor, own: Tensor | None = None) -> Tensor:
        """``S_global Y``, ``(N, K)`` each; where ``Q̃`` has some tokens alone, of those.

        ``own``: the rows of ``Y`` of these, ``(m, K)``; ``None``: all of them.
        """
        # The row sums are one more column of the product.
        values = torch.cat([self.keys.sums(Y), self.counts.to(Y.dtype)], dim=1)
        columns = values.shape[1]
        values = pad(values, (0, product_columns(columns) - columns)).to(self.dtype)
        product = Y.new_empty(len(self.q), columns)
        done = 0
        for block in self.kept:
            product[done : done + len(block)] = (block @ values)[:, :columns]
            done += len(block)

        def rows_of(rows):
            rows = slice(done + rows.start, done + rows.stop)
            inputs = self.q[rows], self.k, self._offsets(rows), values
            return recomputed(self._product, *inputs)[:, :columns]

        filled(product[done:], self.size, rows_of)
        product = self.keys.whole(product)
        total = product[:, -1:] if self.totals is None else self.totals
        empty = total <= self.floor
        own = Y if own is None else own
        return _where_empty(empty, own, product[:, :-1] / total.masked_fill(empty, 1))

    def _product(self, q: Tensor, k: Tensor, offsets: Tensor | None, values: Tensor) -> Tensor:
        total = torch.zeros((), dtype=self.counts.dtype, device=q.device)
        for columns in spans(len(k), MAX_COLUMNS):
            out = self.scratch.tile(len(q), columns.stop - columns.start)
            numerators = self._numerators(q, k[columns], offsets, out)
            total = total + (numerators @ values[columns]).to(total.dtype)
        return total

    def _offsets(self, rows: slice) -> Tensor | None:
        return None if self.offsets is None else self.offsets[rows]

    def _row_maxima(self, like: Tensor) -> Tensor:
        def rows_of(rows):
            best = torch.full_like(like[rows], -torch.inf)
            for columns in spans(len(self.k), MAX_COLUMNS):
                A = self.q[rows] @ self.k[columns].mT
                best = torch.maximum(best, A.amax(-1, keepdim=True).to(best.dtype))
            return best

        return self.keys.largest(filled(torch.empty_like(like), self.size, rows_of))

    def _numerators(
        self, q: Tensor, k: Tensor, offsets: Tensor | None, out: Tensor | None
    ) -> Tensor:
        A = torch.mm(q, k.mT, out=out)
        if self.rule.exponential:
            return (A if offsets is None else A.add_(offsets)).exp_()
        if self.rule.scale != 1:
            A = A.mul_(self.rule.scale)
        if self.rule.offset != 0:
            A = A.add_(self.rule.offset)
        return A.relu_() if self.rule.clamped else A
