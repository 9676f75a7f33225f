r"""One step of the walk in one kernel: :math:`Y \leftarrow G + \alpha S Y`, by three routes.

``Y`` is kept twice: in float32, and in the inputs' dtype as ``V`` for the matrix units. Columns
come in tiles of ``BK``: ``BK − 1`` labels and a column of ones, whose product is the row sum of the
numerators exactly as they were rounded. So a constant ``G`` stays a fixed point in 16 bits too.

Numerators are made from ``s = Q̃ K̃ᵀ``, where ``a = w_max s``: ``2^(s·slope + offset)`` for
``softmax``, ``max(s, 0)``, ``s``, and ``s·slope + offset`` for ``shift``; ``unit`` times their row
sum is the row sum of the definition.
"""

import triton
import triton.language as tl

from nerve_fast.kernels.stencil import add_stencil


@triton.jit
def coefficients(
    SCALE, OFFSETS, i_b, o_m, N, per_temperature, NORMALIZATION: tl.constexpr, BM: tl.constexpr
):
    """``slope``, ``offset [BM]`` and ``unit`` for the rows ``o_m``.

    ``per_temperature`` is ``log2 e / τ``.
    """
    scale = tl.load(SCALE + i_b)
    slope, unit = scale, scale
    b_offset = tl.zeros([BM], tl.float32)
    if NORMALIZATION == "softmax":
        slope, unit = scale * per_temperature, 1.0
        b_offset -= per_temperature
        if OFFSETS is not None:
            b_offset = tl.load(OFFSETS + i_b * N + o_m, mask=o_m < N, other=float("-inf"))
    elif NORMALIZATION == "shift":
        # Numerators stay within 16 bits for weights of any size.
        unit = tl.maximum(scale, 1.0)
        slope = 0.5 * scale / unit
        b_offset += 0.5 / unit
    return slope, b_offset, unit


@triton.jit
def numerators(b_s, slope, b_offset, NORMALIZATION: tl.constexpr):
    """Numerators ``[BM, BN]`` from ``s``."""
    if NORMALIZATION == "softmax":
        b_s = tl.exp2(b_s * slope + b_offset[:, None])
    elif NORMALIZATION == "relu":
        b_s = tl.maximum(b_s, 0.0)
    elif NORMALIZATION == "shift":
        b_s = b_s * slope + b_offset[:, None]
    return b_s


@triton.jit
def load_packed(P, o_row, o_c, CHANNELS: tl.constexpr):
    """Rows of packed heads, which are padded to whole blocks of channels."""
    return tl.load(P + o_row[:, None].to(tl.int64) * CHANNELS + o_c[None, :])


@triton.jit
def load_chunks(
    PQ, o_row, CHANNELS: tl.constexpr, BC: tl.constexpr, RESIDENT: tl.constexpr
):  # fmt: skip
    """The channels of a row tile as a tuple of blocks, or nothing where they are not kept."""
    b_q = ()
    if RESIDENT:
        for i_c in tl.static_range(CHANNELS // BC):
            b_q += (load_packed(PQ, o_row, i_c * BC + tl.arange(0, BC), CHANNELS),)
    return b_q


@triton.jit
def affinities(
    b_q, PQ, PK, o_q, o_k, CHANNELS: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """``s = Q̃ K̃ᵀ`` for rows ``o_q`` and ``o_k`` of all that is packed, ``[BM, BN]``."""
    b_s = tl.zeros([BM, BN], tl.float32)
    if RESIDENT:
        for i_c in tl.static_range(CHANNELS // BC):
            b_k = load_packed(PK, o_k, i_c * BC + tl.arange(0, BC), CHANNELS)
            b_s = tl.dot(b_q[i_c], tl.trans(b_k), b_s, input_precision=PRECISION)
    else:
        for i_c in range(0, CHANNELS, BC):
            b_row = load_packed(PQ, o_q, i_c + tl.arange(0, BC), CHANNELS)
            b_k = load_packed(PK, o_k, i_c + tl.arange(0, BC), CHANNELS)
            b_s = tl.dot(b_row, tl.trans(b_k), b_s, input_precision=PRECISION)
    return b_s


@triton.jit
def arrive(b_acc, PARTIAL, ARRIVED, i_out, i_split, splits, BM: tl.constexpr, BK: tl.constexpr):
    """Leave this split's share of a tile; returns how many had left theirs before."""
    o_m, o_k = tl.arange(0, BM), tl.arange(0, BK)
    p_mine = PARTIAL + (i_out.to(tl.int64) * splits + i_split) * BM * BK
    tl.store(p_mine + o_m[:, None] * BK + o_k[None, :], b_acc)
    # All threads' shares are written before the one thread that counts says so.
    tl.debug_barrier()
    return tl.atomic_add(ARRIVED + i_out, 1, sem="acq_rel", scope="gpu")


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
def streaming_step_kernel(
    PQ, PK, V, Y, G, LOCAL, TOTALS, OFFSETS, SCALE, OUT, OUT_V, PARTIAL, ARRIVED,
    N, M, first, height, width, labels, columns, label_tiles, splits,
    stride_gb, stride_gn, stride_gk, per_temperature, floor, alpha, beta, out_scale,
    NORMALIZATION: tl.constexpr, CHANNELS: tl.constexpr, RADIUS: tl.constexpr, SPLIT: tl.constexpr,
    LAST: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr, BC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Rows from ``first`` on, with affinities made, used and forgotten tile by tile.

    Programs: ``batch · ⌈(N−first)/BM⌉ · label_tiles · splits``. For ``softmax`` this is attention
    with head dimension ``C`` and values ``V``, whose maxima are known beforehand.
    """
    i_split = tl.program_id(0) % splits
    i_out = tl.program_id(0) // splits
    i_label = i_out % label_tiles
    tiles = tl.cdiv(N - first, BM)
    i_b = (i_out // label_tiles // tiles).to(tl.int64)
    o_m = first + (i_out // label_tiles % tiles) * BM + tl.arange(0, BM)
    m_m = o_m < N
    slope, b_offset, unit = coefficients(
        SCALE, OFFSETS, i_b, o_m, N, per_temperature, NORMALIZATION, BM
    )
    o_q = i_b * N + tl.minimum(o_m, N - 1)
    b_q = load_chunks(PQ, o_q, CHANNELS, BC, RESIDENT)
    o_c = i_label * BK + tl.arange(0, BK)
    # [BM, BK]
    b_acc = tl.zeros([BM, BK], tl.float32)
    span = tl.cdiv(tl.cdiv(M, BN), splits) * BN
    for i_n in range(i_split * span, min(i_split * span + span, M), BN):
        o_n = i_n + tl.arange(0, BN)
        # Past the end the last key again: its numerators are finite, and V is 0 there.
        b_s = affinities(
            b_q, PQ, PK, o_q, i_b * M + tl.minimum(o_n, M - 1),
            CHANNELS, PRECISION, RESIDENT, BC, BM, BN,
        )  # fmt: skip
        b_n = numerators(b_s, slope, b_offset, NORMALIZATION).to(V.dtype.element_ty)
        b_v = tl.load(
            V + (i_b * M + o_n)[:, None] * columns + o_c[None, :],
            mask=(o_n < M)[:, None],
            other=0.0,
        )
        b_acc = tl.dot(b_n, b_v, b_acc, input_precision=PRECISION)
    if SPLIT:
        if arrive(b_acc, PARTIAL, ARRIVED, i_out, i_split, splits, BM, BK) != splits - 1:
            return
        b_acc = collect(PARTIAL, ARRIVED, i_out, splits, BM, BK)
    finish(
        b_acc, unit, i_b, i_label, o_m, m_m, Y, G, LOCAL, TOTALS, OUT, OUT_V, N, height, width,
        labels, columns, stride_gb, stride_gn, stride_gk, floor, alpha, beta, out_scale,
        True, RADIUS, LAST, BM, BK,
    )  # fmt: skip


@triton.jit
def numerators_kernel(
    PQ, PK, OFFSETS, SCALE, S,
    N, M, stored, width_s, per_temperature, headroom,
    NORMALIZATION: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    BC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The first ``stored`` rows of numerators, ``S (batch, stored, width_s)``, ``width_s ≥ M``.

    Programs: ``batch · ⌈stored/BM⌉ · ⌈width_s/BN⌉``, in groups of 8 tile rows that share columns in
    the cache. ``headroom``: power of two by which numerators are multiplied for the dtype of ``S``.
    """
    tiles_m, tiles_n = tl.cdiv(stored, BM), tl.cdiv(width_s, BN)
    i_b = (tl.program_id(0) // (tiles_m * tiles_n)).to(tl.int64)
    i_tile = tl.program_id(0) % (tiles_m * tiles_n)
    i_group = i_tile // (8 * tiles_n)
    rows_here = min(tiles_m - i_group * 8, 8)
    o_m = (i_group * 8 + (i_tile % (8 * tiles_n)) % rows_here) * BM + tl.arange(0, BM)
    o_n = (i_tile % (8 * tiles_n)) // rows_here * BN + tl.arange(0, BN)
    slope, b_offset, _ = coefficients(
        SCALE, OFFSETS, i_b, o_m, N, per_temperature, NORMALIZATION, BM
    )
    o_q, o_k = i_b * N + tl.minimum(o_m, N - 1), i_b * M + tl.minimum(o_n, M - 1)
    b_s = affinities((), PQ, PK, o_q, o_k, CHANNELS, PRECISION, False, BC, BM, BN)
    b_n = numerators(b_s, slope, b_offset, NORMALIZATION) * headroom
    p_s = S + (i_b * stored + o_m)[:, None] * width_s + o_n[None, :]
    m_s = (o_m < stored)[:, None] & (o_n < width_s)[None, :]
    tl.store(p_s, b_n.to(S.dtype.element_ty), mask=m_s)


@triton.jit
def dense_step_kernel(
    S, V, Y, G, LOCAL, TOTALS, SCALE, OUT, OUT_V, PARTIAL, ARRIVED,
    N, M, stored, width_s, height, width, labels, columns, label_tiles, splits,
    stride_gb, stride_gn, stride_gk, per_temperature, floor, alpha, beta, out_scale,
    NORMALIZATION: tl.constexpr, RADIUS: tl.constexpr, SPLIT: tl.constexpr, LAST: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The first ``stored`` rows, from numerators ``S (batch, stored, width_s)`` of any dtype.

    Programs: ``batch · ⌈stored/BM⌉ · label_tiles · splits``. ``width_s`` is a multiple of ``BN``.
    """
    i_split = tl.program_id(0) % splits
    i_out = tl.program_id(0) // splits
    i_label = i_out % label_tiles
    tiles = tl.cdiv(stored, BM)
    i_b = (i_out // label_tiles // tiles).to(tl.int64)
    o_m = (i_out // label_tiles % tiles) * BM + tl.arange(0, BM)
    m_m = o_m < stored
    o_c = i_label * BK + tl.arange(0, BK)
    p_s = S + (i_b * stored + tl.minimum(o_m, stored - 1))[:, None] * width_s
    # [BM, BK]
    b_acc = tl.zeros([BM, BK], tl.float32)
    span = tl.cdiv(tl.cdiv(M, BN), splits) * BN
    for i_n in range(i_split * span, min(i_split * span + span, M), BN):
        o_n = i_n + tl.arange(0, BN)
        # [BM, BN], [BN, BK]
        b_n = tl.load(p_s + o_n[None, :])
        b_v = tl.load(
            V + (i_b * M + o_n)[:, None] * columns + o_c[None, :],
            mask=(o_n < M)[:, None],
            other=0.0,
        )
        b_acc = tl.dot(b_n.to(V.dtype.element_ty), b_v, b_acc, input_precision=PRECISION)
    if SPLIT:
        if arrive(b_acc, PARTIAL, ARRIVED, i_out, i_split, splits, BM, BK) != splits - 1:
            return
        b_acc = collect(PARTIAL, ARRIVED, i_out, splits, BM, BK)
    _, _, unit = coefficients(SCALE, None, i_b, o_m, N, per_temperature, NORMALIZATION, BM)
    finish(
        b_acc, unit, i_b, i_label, o_m, m_m, Y, G, LOCAL, TOTALS, OUT, OUT_V, N, height, width,
        labels, columns, stride_gb, stride_gn, stride_gk, floor, alpha, beta, out_scale,
        True, RADIUS, LAST, BM, BK,
    )  # fmt: skip


@triton.jit
def moments_kernel(
    PK, V, MOMENTS, PARTIAL, ARRIVED, M, columns, label_tiles, splits,
    CHANNELS: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr, BC: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``K̃ᵀ V`` and, in the ``BC`` rows after it, the column sums of ``V``.

    ``MOMENTS (batch, CHANNELS + BC, columns)`` float32. Programs: ``batch · (CHANNELS/BC + 1) ·
    label_tiles · splits``.
    """
    i_split = tl.program_id(0) % splits
    i_out = tl.program_id(0) // splits
    i_label = i_out % label_tiles
    blocks = CHANNELS // BC + 1
    i_c = i_out // label_tiles % blocks
    i_b = (i_out // label_tiles // blocks).to(tl.int64)
    o_c, o_k = i_c * BC + tl.arange(0, BC), i_label * BK + tl.arange(0, BK)
    # [BC, BK]
    b_acc = tl.zeros([BC, BK], tl.float32)
    span = tl.cdiv(tl.cdiv(M, BN), splits) * BN
    for i_n in range(i_split * span, min(i_split * span + span, M), BN):
        o_n = i_n + tl.arange(0, BN)
        o_row = i_b * M + o_n
        # [BN, BC], [BN, BK]; past the last channel ones, which sum V up.
        m_k = (o_n < M)[:, None] & (o_c < CHANNELS)[None, :]
        b_k = tl.load(PK + o_row[:, None] * CHANNELS + o_c[None, :], mask=m_k, other=1.0)
        b_v = tl.load(
            V + o_row[:, None] * columns + o_k[None, :], mask=(o_n < M)[:, None], other=0.0
        )
        b_acc = tl.dot(tl.trans(b_k), b_v, b_acc, input_precision=PRECISION)
    if SPLIT:
        if arrive(b_acc, PARTIAL, ARRIVED, i_out, i_split, splits, BC, BK) != splits - 1:
            return
        b_acc = collect(PARTIAL, ARRIVED, i_out, splits, BC, BK)
    p_out = MOMENTS + (i_b * blocks * BC + o_c)[:, None] * columns + o_k[None, :]
    tl.store(p_out, b_acc)


@triton.jit
def factorized_step_kernel(
    PQ, MOMENTS, Y, G, LOCAL, TOTALS, SCALE, OUT, OUT_V,
    N, height, width, labels, columns, label_tiles,
    stride_gb, stride_gn, stride_gk, per_temperature, floor, alpha, beta, out_scale,
    NORMALIZATION: tl.constexpr, CHANNELS: tl.constexpr, RADIUS: tl.constexpr, LAST: tl.constexpr,
    PRECISION: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``Q̃ (K̃ᵀ V)``, exact where numerators are linear in the affinity: ``shift`` and ``l1``.

    Programs: ``batch · ⌈N/BM⌉ · label_tiles``. The moments do not fit 16 bits: the product is one
    of float32, in tf32 where the inputs have 16 bits, which tf32 holds exactly.
    """
    i_label = tl.program_id(0) % label_tiles
    tiles = tl.cdiv(N, BM)
    i_b = (tl.program_id(0) // label_tiles // tiles).to(tl.int64)
    o_m = (tl.program_id(0) // label_tiles % tiles) * BM + tl.arange(0, BM)
    m_m = o_m < N
    o_q = i_b * N + tl.minimum(o_m, N - 1)
    o_k = i_label * BK + tl.arange(0, BK)
    p_moments = MOMENTS + i_b * (CHANNELS + BC) * columns
    # [BM, BK]
    b_acc = tl.zeros([BM, BK], tl.float32)
    for i_c in range(0, CHANNELS, BC):
        o_c = i_c + tl.arange(0, BC)
        b_q = load_packed(PQ, o_q, o_c, CHANNELS).to(tl.float32)
        b_m = tl.load(p_moments + o_c[:, None] * columns + o_k[None, :])
        b_acc = tl.dot(b_q, b_m, b_acc, input_precision=PRECISION)
    slope, b_offset, unit = coefficients(
        SCALE, None, i_b, o_m, N, per_temperature, NORMALIZATION, BM
    )
    if NORMALIZATION == "shift":
        b_sum = tl.load(p_moments + CHANNELS * columns + o_k)
        b_acc = b_acc * slope + b_sum[None, :] * b_offset[:, None]
    finish(
        b_acc, unit, i_b, i_label, o_m, m_m, Y, G, LOCAL, TOTALS, OUT, OUT_V, N, height, width,
        labels, columns, stride_gb, stride_gn, stride_gk, floor, alpha, beta, out_scale,
        True, RADIUS, LAST, BM, BK,
    )  # fmt: skip


@triton.jit
def local_step_kernel(
    Y, G, LOCAL, OUT,
    N, height, width, labels, columns, label_tiles,
    stride_gb, stride_gn, stride_gk, alpha, out_scale,
    RADIUS: tl.constexpr, LAST: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The step at ``β = 0``: neighbours only. Programs: ``batch · ⌈N/BM⌉ · label_tiles``."""
    i_label = tl.program_id(0) % label_tiles
    tiles = tl.cdiv(N, BM)
    i_b = (tl.program_id(0) // label_tiles // tiles).to(tl.int64)
    o_m = (tl.program_id(0) // label_tiles % tiles) * BM + tl.arange(0, BM)
    finish(
        None, 1.0, i_b, i_label, o_m, o_m < N, Y, G, LOCAL, None, OUT, None, N, height, width,
        labels, columns, stride_gb, stride_gn, stride_gk, 0.0, alpha, 0.0, out_scale,
        False, RADIUS, LAST, BM, BK,
    )  # fmt: skip


@triton.jit
def row_statistic_kernel(
    PQ, PK, COUNTS, SCALE, OUT,
    N, M, per_temperature, lift,
    NORMALIZATION: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    RESIDENT: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One number a row, ``OUT (batch, N)``, from one streaming pass.

    ``softmax``: the offset that makes the row's largest numerator 2^``lift``, −inf where the row is
    empty.
    Otherwise the absolute row sum of the numerators. ``COUNTS (M)``: tokens behind each key.
    Programs: ``batch · ⌈N/BM⌉``.
    """
    tiles = tl.cdiv(N, BM)
    i_b = (tl.program_id(0) // tiles).to(tl.int64)
    o_m = (tl.program_id(0) % tiles) * BM + tl.arange(0, BM)
    slope, b_offset, _ = coefficients(SCALE, None, i_b, o_m, N, per_temperature, NORMALIZATION, BM)
    o_q = i_b * N + tl.minimum(o_m, N - 1)
    b_q = load_chunks(PQ, o_q, CHANNELS, BC, RESIDENT)
    # [BM] each
    b_max, b_sum = tl.full([BM], -1e30, tl.float32), tl.zeros([BM], tl.float32)
    for i_n in range(0, M, BN):
        o_n = i_n + tl.arange(0, BN)
        b_s = affinities(
            b_q, PQ, PK, o_q, i_b * M + tl.minimum(o_n, M - 1),
            CHANNELS, PRECISION, RESIDENT, BC, BM, BN,
        )  # fmt: skip
        b_count = tl.load(COUNTS + o_n, mask=o_n < M, other=0.0)
        if NORMALIZATION == "softmax":
            b_new = tl.maximum(b_max, tl.max(b_s, 1) * slope)
            b_p = tl.exp2(b_s * slope - b_new[:, None]) * b_count[None, :]
            b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(b_p, 1)
            b_max = b_new
        else:
            b_n = numerators(b_s, slope, b_offset, NORMALIZATION)
            b_sum += tl.sum(tl.abs(b_n) * b_count[None, :], 1)
    if NORMALIZATION == "softmax":
        # log2 1e-12
        m_empty = b_max - per_temperature + tl.log2(b_sum) <= -39.863137138648355
        b_sum = tl.where(m_empty, float("-inf"), lift - b_max)
    tl.store(OUT + i_b * N + o_m, b_sum, mask=o_m < N)


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
