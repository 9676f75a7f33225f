r"""Cosine affinities from un-normalised queries and keys.

.. math:: A^{(h)}_{ij} = \frac{\langle q_i, k_j \rangle}{\|q_i\| \|k_j\|}, \quad
          A = \sum_h w_h A^{(h)}
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_fast.kernels.configs import config_for
from nerve_fast.kernels.launch import launch, precision
from nerve_fast.kernels.numerators import affinities
from nerve_fast.kernels.pack import pack
from nerve_fast.kernels.vectors import chunk, inverse_norm, load_vectors, padded, strides


@triton.jit
def cosine_affinity_kernel(
    PQ, PK, SCALE, OUT, N,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """A tile ``[BM, BN]`` of one map: ``SCALE (maps)`` times ``Q̃ K̃ᵀ`` of packed heads.

    Programs: ``maps · ⌈N/BM⌉ · ⌈N/BN⌉``, in groups of 8 tile rows that share columns in the cache.
    """
    tiles_m, tiles_n = tl.cdiv(N, BM), tl.cdiv(N, BN)
    i_map = (tl.program_id(0) // (tiles_m * tiles_n)).to(tl.int64)
    i_tile = tl.program_id(0) % (tiles_m * tiles_n)
    i_group = i_tile // (8 * tiles_n)
    rows_here = min(tiles_m - i_group * 8, 8)
    i_m = i_group * 8 + (i_tile % (8 * tiles_n)) % rows_here
    i_n = (i_tile % (8 * tiles_n)) // rows_here
    o_m, o_n = i_m * BM + tl.arange(0, BM), i_n * BN + tl.arange(0, BN)
    # [BM, BN]
    b_s = affinities(
        (), PQ, PK, i_map * N + tl.minimum(o_m, N - 1), i_map * N + tl.minimum(o_n, N - 1),
        CHANNELS, PRECISION, False, BC, BM, BN,
    )  # fmt: skip
    b_s *= tl.load(SCALE + i_map)
    tl.store(
        OUT + (i_map * N + o_m)[:, None] * N + o_n[None, :],
        b_s.to(OUT.dtype.element_ty),
        mask=(o_m < N)[:, None] & (o_n < N)[None, :],
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


def cosine_affinity(q: Tensor, k: Tensor, head_weights: Tensor | None = None) -> Tensor:
    """As :func:`nerve_fast.reference.cosine_affinity`, in the dtype of ``q``.

    Heads are packed once, in that dtype; then each map is one product.

    Args:
        q, k: ``(…, H, N, D)``, float16, bfloat16 or float32, any strides.
        head_weights: ``(…, H)``.

    Returns:
        ``(…, N, N)``, or ``(…, H, N, N)`` without ``head_weights``.
    """
    *batch, heads, tokens, head_dim = q.shape
    if head_weights is None:
        # Each head is a member of the batch, with a map of its own.
        batch, heads = [*batch, heads], 1
        weights = q.new_ones(math.prod(batch), 1, dtype=torch.float32)
    else:
        weights = head_weights.reshape(-1, heads).float().contiguous()
    packed_q, packed_k = pack(
        *(x.reshape(len(weights), heads, tokens, head_dim) for x in (q, k)), weights
    )
    out = q.new_empty(*batch, tokens, tokens)
    config = config_for("cosine_affinity", q, tokens)
    launch(
        cosine_affinity_kernel,
        len(weights) * triton.cdiv(tokens, config["BM"]) * triton.cdiv(tokens, config["BN"]),
        config,
        PQ=packed_q,
        PK=packed_k,
        SCALE=weights.amax(-1),
        OUT=out,
        N=tokens,
        CHANNELS=packed_q.shape[-1],
        PRECISION=precision(q),
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


def _maps(q: Tensor, k: Tensor, head_weights: Tensor | None) -> tuple[dict, int]:
    """Arguments of :func:`local_affinity_kernel`, and how many maps it makes."""
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
