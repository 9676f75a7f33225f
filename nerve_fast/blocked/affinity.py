"""Affinities: of all tokens in one product, of a token and its window in products of small ones."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from nerve_fast.blocked.packing import pack
from nerve_fast.blocked.precision import product_dtype
from nerve_fast.blocked.tiles import filled
from nerve_fast.numerics import upcast, wants_gradient, with_norms
from nerve_fast.utils.tiles import Scratch

STRIPE_BYTES = 6 << 20
"""Rows of the grid whose packed queries, or affinities, take this much are compared at a time."""

BLOCK = 8
"""Tokens of a row that are compared at a time with those that are in the window of any of them."""


def cosine_affinity(q: Tensor, k: Tensor, head_weights: Tensor | None = None) -> Tensor:
    """As :func:`nerve_fast.reference.cosine_affinity`, the sum over heads inside the product."""
    if head_weights is None:
        # One head each: the packing normalises and changes nothing else.
        q, k = q[..., None, :, :], k[..., None, :, :]
        head_weights = q.new_ones(q.shape[:-2])
    dtype = product_dtype(q.dtype, q.device)
    packed_q, packed_k = (packed.to(dtype) for packed in pack(q, k, head_weights))
    return packed_q @ packed_k.mT


def local_affinity(
    q: Tensor,
    k: Tensor,
    grid: tuple[int, int],
    head_weights: Tensor | None,
    radius: int,
    self_affinity: float,
) -> Tensor:
    """As :func:`nerve_fast.reference.local_affinity`, a stripe of the grid at a time."""
    if head_weights is None:
        # One head each: its weight is 1.
        q, k = q[..., None, :, :], k[..., None, :, :]
        head_weights = q.new_ones(q.shape[:-2])
    members = zip(
        q.reshape(-1, *q.shape[-3:]),
        k.reshape(-1, *k.shape[-3:]),
        head_weights.reshape(-1, head_weights.shape[-1]),
        strict=True,
    )
    values = [
        local_member(one_q, one_k, weights, grid, radius, self_affinity)
        for one_q, one_k, weights in members
    ]
    if len(values) == 1:
        return values[0].view(*q.shape[:-3], q.shape[-2], -1)
    return torch.stack(values).view(*q.shape[:-3], q.shape[-2], -1)


def local_member(
    q: Tensor,
    k: Tensor,
    head_weights: Tensor,
    grid: tuple[int, int],
    radius: int,
    self_affinity: float,
    halo: tuple[int, int] = (0, 0),
) -> Tensor:
    """The local affinity of one member of a batch: ``(N, (2r+1)²)`` in window order.

    For each row of a window, :data:`BLOCK` tokens next to each other are multiplied with all keys
    that any of them has there; of each product the diagonals are taken. That is some three times
    the arithmetic, and much faster than sums over products of elements, which are all passes.

    Args:
        q: ``(H, N, D)``, of the rows of ``grid``.
        k: of the same, and of rows of the grid above and below them, as ``halo`` says.
        head_weights: ``(H,)``.
        grid, radius: ``(h, w)`` and the window's.
        self_affinity: ``ε_self``.
        halo: how many rows of the grid there are above and below.
    """
    (height, width), side = grid, 2 * radius + 1
    heads, _, head_dim = q.shape
    queries, keys = (x.unflatten(1, (-1, width)).permute(1, 2, 0, 3) for x in (q, k))
    like = upcast(q.new_empty(0))
    stripe = _Stripe(like, width, radius, wants_gradient(q, k, head_weights))

    def of_rows(rows):
        top, bottom = halo[0] + rows.start - radius, halo[0] + rows.stop + radius
        inner = keys[max(top, 0) : bottom]
        margins = max(-top, 0), max(bottom - len(keys), 0)
        return stripe.compared(queries[rows], inner, head_weights, margins)

    size = stripe_rows(width, heads * head_dim, radius, like.itemsize)
    values = filled(like.new_empty(height, width, side**2), size, of_rows).flatten(0, 1)
    values[:, side**2 // 2] = self_affinity
    return values


def stripe_rows(width: int, channels: int, radius: int, itemsize: int) -> int:
    """Rows of a stripe; not few, as keys of the rows around it are packed once more for each."""
    window = (2 * radius + 1) ** 2
    row_bytes = row_pitch(width, radius) * max(channels, window) * itemsize
    return max(STRIPE_BYTES // row_bytes, 2 * radius + 1)


def row_pitch(width: int, radius: int) -> int:
    """Columns of a row with its zeros, a multiple of :data:`BLOCK`."""
    return -(-(max(width, radius) + radius) // BLOCK) * BLOCK


class _Stripe:
    """The comparison of a few rows of the grid, in memory that one after another uses.

    Rows are stored with zeros behind them, up to whole blocks, so that the blocks of all rows are
    one batch of products; the keys' rows begin with ``radius`` of the zeros before them.
    """

    def __init__(self, like: Tensor, width: int, radius: int, gradient: bool):
        self.like, self.width, self.radius, self.gradient = like, width, radius, gradient
        self.pitch = row_pitch(width, radius)
        self.queries, self.keys, self.products = (Scratch(like, gradient) for _ in range(3))

    def compared(
        self, queries: Tensor, keys: Tensor, head_weights: Tensor, margins: tuple[int, int]
    ) -> Tensor:
        """``queries (h, w, H, D)`` and ``keys`` with the rows around them: ``(h, w, (2r+1)²)``.

        ``margins``: how many of the rows above and below are beyond the grid, and not in ``keys``.
        """
        height, side = len(queries), 2 * self.radius + 1
        q = self._packed(self.queries, queries, head_weights[:, None], 0, (0, 0)).flatten(0, 1)
        # One more row: the blocks of the last reach beyond it.
        above, below = margins
        ones = torch.ones_like(head_weights)[:, None]
        k = self._packed(self.keys, keys, ones, self.radius, (above, below + 1)).flatten(0, 1)
        q = q.unflatten(0, (-1, BLOCK))  # (b, BLOCK, C)
        out = self.products.tile(len(q), BLOCK, BLOCK + side - 1)
        found = q.new_empty(height, self.pitch // BLOCK, BLOCK, side, side)
        for dy in range(side):
            near = k[dy * self.pitch :][: height * self.pitch + side - 1]
            products = torch.bmm(q, near.unfold(0, BLOCK + side - 1, BLOCK), out=out)
            columns = products.shape[-1]
            diagonals = products.as_strided(
                (len(q), BLOCK, side), (BLOCK * columns, columns + 1, 1), products.storage_offset()
            )
            found[..., dy, :] = diagonals.unflatten(0, (height, -1))
        return found.flatten(1, 2)[:, : self.width].flatten(2)

    def _packed(
        self,
        scratch: Scratch,
        heads: Tensor,
        lengths: Tensor,
        before: int,
        rows: tuple[int, int],
    ) -> Tensor:
        """``(h, w, H, D)`` as unit vectors times ``lengths (H, 1)``, zeros around: ``(h', p, C)``.

        There are ``before`` columns of zeros before and ``rows`` of them above and below.
        """
        height, width, *channels = heads.shape
        above, below = rows
        after = self.pitch - before - width
        tile = scratch.tile(above + height + below, self.pitch, *channels)
        if tile is None:
            packed = with_norms(heads, lengths).flatten(-2)
            return pad(packed, (0, 0, before, after, above, below))
        inner = tile[above : above + height]
        tile[:above], tile[above + height :] = 0, 0
        inner[:, :before], inner[:, before + width :] = 0, 0
        with_norms(heads, lengths, inner[:, before : before + width])
        return tile.flatten(-2)
