r"""What the steps of all routes have in common: :math:`Y \leftarrow G + \alpha S Y` in one kernel.

``Y`` is kept twice: in float32, and in the inputs' dtype as ``V`` for the matrix units. Columns
come in tiles of ``BK``: ``BK − 1`` labels and a column of ones, whose product is the row sum of the
numerators exactly as they were rounded. So a constant ``G`` stays a fixed point in 16 bits too.

A route's kernel makes the product of its numerators with ``V``; :func:`finish` does the rest. Where
the tiles of rows do not fill the device, several programs share the columns of one tile:
:func:`arrive` leaves a program's share, and the last to arrive sums them up with :func:`collect`.
"""

import triton
import triton.language as tl

from nerve_fast.kernels.numerators import count_arrival
from nerve_fast.kernels.stencil import add_stencil


@triton.jit
def arrive(b_acc, PARTIAL, ARRIVED, i_out, i_split, splits, BM: tl.constexpr, BK: tl.constexpr):
    """Leave this split's share of a tile; returns how many had left theirs before."""
    o_m, o_k = tl.arange(0, BM), tl.arange(0, BK)
    p_mine = PARTIAL + (i_out.to(tl.int64) * splits + i_split) * BM * BK
    tl.store(p_mine + o_m[:, None] * BK + o_k[None, :], b_acc)
    return count_arrival(ARRIVED, i_out)


@triton.jit
def collect(PARTIAL, ARRIVED, i_out, splits, BM: tl.constexpr, BK: tl.constexpr):
    """The sum of all shares of a tile, always in the same order; the counter is 0 again."""
    o_m, o_k = tl.arange(0, BM), tl.arange(0, BK)
    b_acc = tl.zeros([BM, BK], tl.float32)
    for i_s in range(splits):
        p_share = PARTIAL + (i_out.to(tl.int64) * splits + i_s) * BM * BK
        # Past the first-level cache, which other multiprocessors do not write through to.
        b_acc += tl.load(p_share + o_m[:, None] * BK + o_k[None, :], cache_modifier=".cg")
    tl.store(ARRIVED + i_out, 0)
    return b_acc


@triton.jit
def finish(
    b_acc, unit, i_b, i_label, o_m, m_m, Y, G, LOCAL, TOTALS, OUT, OUT_V, N, height, width, labels,
    columns, stride_gb, stride_gn, stride_gk, floor, alpha, beta, out_scale,
    GLOBAL: tl.constexpr, RADIUS: tl.constexpr, LAST: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """From the product with the numerators to the next ``Y``: everything else a step does.

    ``RADIUS = 0``: no local part. ``LAST``: ``OUT`` is ``(batch, N, labels)``, times ``out_scale``.
    """
    o_k = tl.arange(0, BK)
    o_c = i_label * BK + o_k
    o_row = i_b * N + o_m
    o_label = i_label * (BK - 1) + o_k
    m_label = (o_k < BK - 1) & (o_label < labels)
    # [BM, BK]
    b_moved = tl.zeros([BM, BK], tl.float32)
    if GLOBAL:
        if TOTALS is not None:
            b_total = tl.load(TOTALS + o_row, mask=m_m, other=1.0)
        else:
            b_total = tl.sum(tl.where((o_k == BK - 1)[None, :], b_acc, 0.0), 1)
        m_empty = b_total * unit <= floor
        b_share = tl.where(m_empty, 0.0, beta / tl.where(m_empty, 1.0, b_total))
        b_y = tl.load(Y + o_row[:, None] * columns + o_c[None, :], mask=m_m[:, None], other=0.0)
        b_moved = tl.where(m_empty[:, None], beta * b_y, b_acc * b_share[:, None])
    if RADIUS > 0:
        b_moved = add_stencil(
            b_moved, 1 - beta, LOCAL, Y, i_b, o_m, o_c, N, height, width, columns, RADIUS, BK
        )
    p_g = G + i_b * stride_gb + o_m[:, None].to(tl.int64) * stride_gn
    m_g = m_m[:, None] & m_label[None, :]
    b_g = tl.load(p_g + o_label[None, :].to(tl.int64) * stride_gk, mask=m_g, other=0.0)
    b_out = b_g.to(tl.float32) + alpha * b_moved
    if LAST:
        p_out = OUT + o_row[:, None] * labels + o_label[None, :]
        tl.store(p_out, (b_out * out_scale).to(OUT.dtype.element_ty), mask=m_g)
    else:
        b_out = tl.where(m_label[None, :], b_out, (o_k == BK - 1).to(tl.float32)[None, :])
        o_out = o_row[:, None] * columns + o_c[None, :]
        tl.store(OUT + o_out, b_out, mask=m_m[:, None])
        if OUT_V is not None:
            tl.store(OUT_V + o_out, b_out.to(OUT_V.dtype.element_ty), mask=m_m[:, None])


@triton.jit
def spread_kernel(
    G, Y, V, N, labels, columns, label_tiles, stride_gb, stride_gn, stride_gk, BM: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """``Y₀ = G`` in tiles of ``BK − 1`` labels and a column of ones.

    Programs: ``batch · ⌈N/BM⌉ · label_tiles``.
    """
    i_label = tl.program_id(0) % label_tiles
    tiles = tl.cdiv(N, BM)
    i_b = (tl.program_id(0) // label_tiles // tiles).to(tl.int64)
    o_m = (tl.program_id(0) // label_tiles % tiles) * BM + tl.arange(0, BM)
    o_k = tl.arange(0, BK)
    o_label = i_label * (BK - 1) + o_k
    m_m = (o_m < N)[:, None]
    m_label = ((o_k < BK - 1) & (o_label < labels))[None, :]
    p_g = G + i_b * stride_gb + o_m[:, None].to(tl.int64) * stride_gn
    b_g = tl.load(p_g + o_label[None, :].to(tl.int64) * stride_gk, mask=m_m & m_label, other=0.0)
    b_g = tl.where(m_label, b_g.to(tl.float32), (o_k == BK - 1).to(tl.float32)[None, :])
    o_out = (i_b * N + o_m)[:, None] * columns + (i_label * BK + o_k)[None, :]
    tl.store(Y + o_out, b_g, mask=m_m)
    if V is not None:
        tl.store(V + o_out, b_g.to(V.dtype.element_ty), mask=m_m)
