"""Affinities from packed heads: ``A = Q̃ K̃ᵀ`` is one product, whatever the number of heads."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from nerve_fast.blocked.precision import product_dtype
from nerve_fast.blocked.tiles import Scratch, filled, stacked, wants_gradient
from nerve_fast.numerics import NORM_FLOOR, power_of_two, upcast

STRIPE_BYTES = 1 << 20
"""Rows of the grid whose packed queries take about this much are compared at a time."""

PACKED_BYTES = 16 << 20
"""Rows of the grid whose packed queries take about this much are packed at a time."""


def pack(q: Tensor, k: Tensor, head_weights: Tensor) -> tuple[Tensor, Tensor]:
    """``Q̃ = concat_h(w_h q̂_h)`` and ``K̃ = concat_h(k̂_h)``, each ``(…, N, H·D)``."""
    return pack_queries(q, head_weights), pack_keys(k)


def pack_queries(q: Tensor, head_weights: Tensor) -> Tensor:
    """``Q̃`` of :func:`pack`."""
    return _pack(q, head_weights)


def pack_keys(k: Tensor) -> Tensor:
    """``K̃`` of :func:`pack`."""
    return _pack(k, torch.ones(k.shape[:-2], dtype=torch.float32, device=k.device))


def _pack(x: Tensor, head_weights: Tensor) -> Tensor:
    dtype = upcast(x.new_empty(0)).dtype
    # Reordered and widened in one pass, because allocations cost more than arithmetic here.
    heads_last = x.transpose(-3, -2)
    packed = torch.empty(heads_last.shape, dtype=dtype, device=x.device).copy_(heads_last)
    # As in `unit_vectors`, in place.
    packed = packed.div_(power_of_two(heads_last))
    norm = torch.linalg.vector_norm(packed, dim=-1, keepdim=True).clamp(min=NORM_FLOOR)
    scale = head_weights[..., None, :, None].to(dtype) / norm
    # The gradient of the norm needs what it was taken of.
    packed = packed * scale if packed.requires_grad else packed.mul_(scale)
    return packed.flatten(-2)


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
    """As :func:`nerve_fast.reference.local_affinity`, from views shifted over the grid."""
    if head_weights is None:
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
    """The local affinity of one member of a batch, of which a part is packed at a time.

    Args:
        q: ``(H, N, D)``, of the rows of ``grid``.
        k: of the same, and of rows of the grid above and below them, as ``halo`` says.
        head_weights: ``(H,)``.
        grid, radius, self_affinity: as :func:`packed_local` takes them.
        halo: how many rows of the grid there are above and below.
    """
    h, w = grid

    def of_rows(rows):
        above, below = min(radius, halo[0] + rows.start), min(radius, halo[1] + h - rows.stop)
        top, bottom = halo[0] + rows.start - above, halo[0] + rows.stop + below
        values = packed_local(
            pack_queries(q[:, rows.start * w : rows.stop * w], head_weights),
            pack_keys(k[:, top * w : bottom * w]),
            (rows.stop - rows.start, w),
            radius,
            self_affinity,
            (above, below),
        )
        return values.unflatten(0, (-1, w))

    out = upcast(q.new_empty(0)).new_empty(h, w, (2 * radius + 1) ** 2)
    size = max(PACKED_BYTES // (w * len(q) * q.shape[-1] * out.element_size()), radius)
    return filled(out, size, of_rows).flatten(0, 1)


def packed_local(
    packed_q: Tensor,
    packed_k: Tensor,
    grid: tuple[int, int],
    radius: int,
    self_affinity: float,
    halo: tuple[int, int] = (0, 0),
) -> Tensor:
    """The local affinity from packed heads ``(N, C)``: ``(N, (2r+1)²)`` in window order.

    Args:
        packed_q: of the rows of ``grid``.
        packed_k: of the same, and of rows of the grid above and below them, as ``halo`` says.
        grid, radius: ``(h, w)`` and the window's.
        self_affinity: ``ε_self``.
        halo: how many rows of the grid there are above and below.
    """
    h, w = grid
    side = 2 * radius + 1
    q, k = packed_q.unflatten(0, grid), packed_k.unflatten(0, (-1, w))
    gradient = wants_gradient(q, k)
    margins, products = Scratch(q, gradient), Scratch(q, gradient)

    def of_rows(rows):
        # The stripe's keys with `radius` rows and columns around them, 0 off the grid.
        top, bottom = halo[0] + rows.start - radius, halo[0] + rows.stop + radius
        above, below = max(-top, 0), max(bottom - len(k), 0)
        inner = k[max(top, 0) : min(bottom, len(k))]
        keys = margins.tile(bottom - top, w + 2 * radius, k.shape[-1])
        if keys is None:
            keys = pad(inner, (0, 0, radius, radius, above, below))
        else:
            keys.zero_()[above : len(keys) - below, radius : radius + w] = inner
        height = rows.stop - rows.start
        out = products.tile(*q[rows].shape)
        sums = (
            torch.mul(q[rows], keys[dy : dy + height, dx : dx + w], out=out).sum(-1)
            for dy in range(side)
            for dx in range(side)
        )
        return stacked(sums, side**2)

    size = max(STRIPE_BYTES // (q.element_size() * q[0].numel()), 1)
    values = filled(q.new_empty(h, w, side**2), size, of_rows).flatten(0, 1)
    middle = torch.arange(side**2, device=values.device) == side**2 // 2
    return values.masked_fill(middle, self_affinity)
