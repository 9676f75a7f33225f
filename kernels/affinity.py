r"""Cosine affinities from un-normalised queries and keys.

.. math:: A^{(h)}_{ij} = \frac{\langle q_i, k_j \rangle}{\|q_i\| \|k_j\|}, \quad
          A = \sum_h w_h A^{(h)}
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_fast.kernels.configs import config_for
from nerve_fast.kernels.launch import launch, precision
from nerve_fast.numerics import NORM_FLOOR

FLOOR = tl.constexpr(NORM_FLOOR)


@triton.jit
def inverse_norm(b_squares):
    """The inverse of norms with a floor, as ``torch.nn.functional.normalize`` has them."""
    return 1 / tl.maximum(tl.sqrt(b_squares), FLOOR)


@triton.jit
def load_vectors(base, o_n, stride_n, o_d, stride_d, m_n, D):
    """Rows ``o_n`` and channels ``o_d`` of one head, 0 where there are none."""
    return tl.load(
        base + o_n[:, None].to(tl.int64) * stride_n + o_d[None, :].to(tl.int64) * stride_d,
        mask=m_n[:, None] & (o_d[None, :] < D),
        other=0.0,
    )


@triton.jit
def cosine_affinity_kernel(
    Q,
    K,
    W,
    OUT,
    N,
    D,
    heads,
    maps_per_batch,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    UNIT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """A tile ``[BM, BN]`` of one map: the sum over its ``heads`` of weighted cosines.

    Programs: ``maps · ⌈N/BM⌉ · ⌈N/BN⌉``, in groups of 8 tile rows that share columns in the cache.
    Every tile of q and k is read once; its squares give the norms while it is there.
    """
    tiles_m, tiles_n = tl.cdiv(N, BM), tl.cdiv(N, BN)
    i_map = tl.program_id(0) // (tiles_m * tiles_n)
    i_tile = tl.program_id(0) % (tiles_m * tiles_n)
    i_group = i_tile // (8 * tiles_n)
    rows_here = min(tiles_m - i_group * 8, 8)
    i_m = i_group * 8 + (i_tile % (8 * tiles_n)) % rows_here
    i_n = (i_tile % (8 * tiles_n)) // rows_here

    i_b = (i_map // maps_per_batch).to(tl.int64)
    i_first = (i_map % maps_per_batch) * heads
    o_m, o_n = i_m * BM + tl.arange(0, BM), i_n * BN + tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    m_m, m_n = o_m < N, o_n < N
    # [BM, BN]
    b_total = tl.zeros([BM, BN], tl.float32)
    for i_head in range(heads):
        i_h = (i_first + i_head).to(tl.int64)
        p_q = Q + (i_b * stride_qb + i_h * stride_qh) * UNIT
        p_k = K + (i_b * stride_kb + i_h * stride_kh) * UNIT
        b_s = tl.zeros([BM, BN], tl.float32)
        b_qq, b_kk = tl.zeros([BM], tl.float32), tl.zeros([BN], tl.float32)
        for i_c in tl.static_range(CHUNKS):
            # [BM, BD], [BN, BD]
            b_q = load_vectors(p_q, o_m, stride_qn * UNIT, o_d + i_c * BD, stride_qd, m_m, D * UNIT)
            b_k = load_vectors(p_k, o_n, stride_kn * UNIT, o_d + i_c * BD, stride_kd, m_n, D * UNIT)
            b_s = tl.dot(b_q, tl.trans(b_k), b_s, input_precision=PRECISION)
            b_qf, b_kf = b_q.to(tl.float32), b_k.to(tl.float32)
            b_qq += tl.sum(b_qf * b_qf, 1)
            b_kk += tl.sum(b_kf * b_kf, 1)
        b_scale = inverse_norm(b_qq)
        if WEIGHTED:
            b_scale *= tl.load(W + i_b * heads + i_head)
        b_total += b_s * b_scale[:, None] * inverse_norm(b_kk)[None, :]
    o_row = i_map.to(tl.int64) * N + o_m
    tl.store(
        OUT + o_row[:, None] * N + o_n[None, :],
        b_total.to(OUT.dtype.element_ty),
        mask=m_m[:, None] & m_n[None, :],
    )


@triton.jit
def local_affinity_kernel(
    Q,
    K,
    W,
    OUT,
    N,
    D,
    height,
    width,
    heads,
    maps_per_batch,
    self_affinity,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    UNIT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    RADIUS: tl.constexpr,
    CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
):
    """The window of ``BM − 2r`` tokens of one map: ``OUT (maps, (2r+1)², N)``, a plane an entry.

    Programs: ``maps · ⌈N/(BM−2r)⌉``. Whatever the borders of the grid, the neighbours in one row of
    the window are tokens that follow one another: a product ``[BM, BM]`` holds them as diagonals.
    """
    SIDE: tl.constexpr = 2 * RADIUS + 1
    ROWS: tl.constexpr = BM - 2 * RADIUS
    tiles = tl.cdiv(N, ROWS)
    i_map = tl.program_id(0) // tiles
    i_b = (i_map // maps_per_batch).to(tl.int64)
    i_first = (i_map % maps_per_batch) * heads
    o_t, o_d = tl.arange(0, BM), tl.arange(0, BD)
    o_i = (tl.program_id(0) % tiles) * ROWS + o_t
    m_i = (o_i < N) & (o_t < ROWS)
    o_y, o_x = o_i // width, o_i % width
    i_plane = i_map.to(tl.int64) * SIDE * SIDE
    for i_dy in range(SIDE):
        o_j = o_i + (i_dy - RADIUS) * width - RADIUS
        m_j = (o_j >= 0) & (o_j < N)
        # [BM, BM]
        b_total = tl.zeros([BM, BM], tl.float32)
        for i_head in range(heads):
            i_h = (i_first + i_head).to(tl.int64)
            p_q = Q + (i_b * stride_qb + i_h * stride_qh) * UNIT
            p_k = K + (i_b * stride_kb + i_h * stride_kh) * UNIT
            b_s = tl.zeros([BM, BM], tl.float32)
            b_qq, b_kk = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
            for i_c in tl.static_range(CHUNKS):
                # [BM, BD] each
                b_q = load_vectors(
                    p_q, o_i, stride_qn * UNIT, o_d + i_c * BD, stride_qd, m_i, D * UNIT
                )
                b_k = load_vectors(
                    p_k, o_j, stride_kn * UNIT, o_d + i_c * BD, stride_kd, m_j, D * UNIT
                )
                b_s = tl.dot(b_q, tl.trans(b_k), b_s, input_precision=PRECISION)
                b_qf, b_kf = b_q.to(tl.float32), b_k.to(tl.float32)
                b_qq += tl.sum(b_qf * b_qf, 1)
                b_kk += tl.sum(b_kf * b_kf, 1)
            b_scale = inverse_norm(b_qq)
            if WEIGHTED:
                b_scale *= tl.load(W + i_b * heads + i_head)
            b_total += b_s * b_scale[:, None] * inverse_norm(b_kk)[None, :]
        i_y = o_y + i_dy - RADIUS
        for i_dx in tl.static_range(SIDE):
            # [BM]
            b_a = tl.sum(tl.where(o_t[None, :] == o_t[:, None] + i_dx, b_total, 0.0), 1)
            i_x = o_x + i_dx - RADIUS
            m_in = (i_y >= 0) & (i_y < height) & (i_x >= 0) & (i_x < width)
            b_a = tl.where(m_in, b_a, 0.0)
            if i_dx == RADIUS:
                b_a = tl.where(i_dy == RADIUS, self_affinity, b_a)
            tl.store(OUT + (i_plane + i_dy * SIDE + i_dx) * N + o_i, b_a, mask=m_i)


def cosine_affinity(
    q: Tensor, k: Tensor, head_weights: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """As :func:`nerve_fast.reference.cosine_affinity`, in the dtype of ``q`` or ``out_dtype``.

    Args:
        q, k: ``(…, H, N, D)``, float16, bfloat16 or float32, any strides.
        head_weights: ``(…, H)``.
        out_dtype: of the result; sums are kept in float32 whatever it is.

    Returns:
        ``(…, N, N)``, or ``(…, H, N, N)`` without ``head_weights``.
    """
    *batch, heads, tokens, head_dim = q.shape
    arguments, maps = _maps(q, k, head_weights)
    out = q.new_empty(
        *batch, *([] if head_weights is not None else [heads]), tokens, tokens, dtype=out_dtype
    )
    config = config_for(
        "cosine_affinity", q, tokens, loaded=padded(head_dim), aligned=arguments["UNIT"] > 1
    )
    launch(
        cosine_affinity_kernel,
        maps * triton.cdiv(tokens, config["BM"]) * triton.cdiv(tokens, config["BN"]),
        config,
        OUT=out,
        **arguments,
    )
    return out


def local_affinity(
    q: Tensor,
    k: Tensor,
    grid: tuple[int, int],
    head_weights: Tensor | None,
    radius: int,
    self_affinity: float,
) -> Tensor:
    """As :func:`nerve_fast.reference.local_affinity`: ``(…, N, (2r+1)²)`` float32.

    In memory the window's entries are planes of the grid, as the walk reads them.
    """
    *batch, heads, tokens, head_dim = q.shape
    arguments, maps = _maps(q, k, head_weights)
    side = 2 * radius + 1
    out = q.new_empty(
        *batch,
        *([] if head_weights is not None else [heads]),
        side**2,
        tokens,
        dtype=torch.float32,
    )
    config = config_for(
        "local_affinity", q, tokens, loaded=padded(head_dim), aligned=arguments["UNIT"] > 1
    )
    launch(
        local_affinity_kernel,
        maps * triton.cdiv(tokens, config["BM"] - 2 * radius),
        config,
        OUT=out,
        height=grid[0],
        width=grid[1],
        self_affinity=self_affinity,
        RADIUS=radius,
        **arguments,
    )
    return out.mT


def chunk(head_dim: int) -> int:
    """Channels of a head in one block: 64, or 32 where that wastes less."""
    return min((64, 32), key=lambda size: (triton.cdiv(head_dim, size) * size, -size))


def padded(head_dim: int) -> int:
    """``head_dim`` in whole blocks."""
    return triton.cdiv(head_dim, chunk(head_dim)) * chunk(head_dim)


def _maps(q: Tensor, k: Tensor, head_weights: Tensor | None) -> tuple[dict, int]:
    """Arguments that cosine and local affinity share, and how many maps they make."""
    heads, tokens, head_dim = q.shape[-3:]
    q, k = (x.reshape(-1, heads, tokens, head_dim) for x in (q, k))
    weighted = head_weights is not None
    size = chunk(head_dim)
    arguments = {
        "Q": q,
        "K": k,
        "W": head_weights.reshape(-1, heads).float().contiguous() if weighted else None,
        "N": tokens,
        "heads": heads if weighted else 1,
        "maps_per_batch": 1 if weighted else heads,
        **strides(q, k),
        "WEIGHTED": weighted,
        "CHUNKS": triton.cdiv(head_dim, size),
        "PRECISION": precision(q),
        "BD": size,
    }
    return arguments, len(q) * (1 if weighted else heads)


def strides(q: Tensor, k: Tensor) -> dict[str, int]:
    """``D`` and the strides of two tensors ``(B, H, N, D)`` as arguments of a kernel.

    In units of 16 bytes where all are whole, so that the compiler knows how loads are aligned: it
    sees for itself only multiples of 16 elements, and 40 channels are none. ``UNIT`` is 1 where
    rows do not start at multiples of 16 bytes, and configurations are asked for accordingly.
    """
    unit = 16 // q.element_size()
    sizes = [q.shape[3], *(x.stride(i) for x in (q, k) for i in range(3))]
    whole = all(size % unit == 0 for size in sizes)
    if not whole or any(x.stride(3) != 1 or x.data_ptr() % 16 for x in (q, k)):
        unit = 1
    arguments = {"UNIT": unit, "D": q.shape[3] // unit}
    for name, x in (("q", q), ("k", k)):
        arguments |= {f"stride_{name}{axis}": x.stride(i) // unit for i, axis in enumerate("bhn")}
        arguments[f"stride_{name}d"] = x.stride(3)
    return arguments
