r"""Head entropy in one streaming pass, and the head weights it gives.

With logits in base 2, :math:`s = \mathrm{scale} \cdot \log_2 e \cdot q k^\top`, and a running
maximum :math:`m`, a row needs :math:`l = \sum 2^{s-m}` and :math:`e = \sum (s-m) 2^{s-m}`; its
entropy is :math:`\ln 2 \, (\log_2 l - e / l)`. When the maximum rises by :math:`\delta`, both
shrink by :math:`2^{-\delta}` and :math:`e` loses :math:`\delta l` of the old terms.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_fast.kernels.configs import config_for
from nerve_fast.kernels.launch import launch, multiprocessors, precision
from nerve_fast.kernels.vectors import chunk, load_vectors, padded, strides

LOG2_E = math.log2(math.e)


@triton.jit
def absorb(
    b_q,
    p_k,
    i_n,
    N,
    D,
    stride_kn,
    stride_kd,
    scale,
    b_max,
    b_sum,
    b_mean,
    CUT: tl.constexpr,
    FLIP: tl.constexpr,
    CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """The running maximum, sum and mean of ``BM`` rows after ``BN`` more columns."""
    o_n, o_d = i_n + tl.arange(0, BN), tl.arange(0, BD)
    # [BM, BN]
    b_s = tl.zeros([BM, BN], tl.float32)
    for i_c in tl.static_range(CHUNKS):
        b_k = load_vectors(p_k, o_n, stride_kn, o_d + i_c * BD, stride_kd, o_n < N, D)
        b_s = tl.dot(b_q[i_c], tl.trans(b_k), b_s, input_precision=PRECISION)
    if FLIP:
        b_s = -b_s
    if CUT:
        # Far enough under any maximum to add nothing, and finite: 0 · −inf would add NaN.
        b_s = tl.where((o_n < N)[None, :], b_s * scale, -1e30)
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_d = b_s - b_new[:, None]
    else:
        b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale)
        b_d = b_s * scale - b_new[:, None]
    b_p = tl.exp2(b_d)
    b_rise = tl.maximum(b_max - b_new, -150.0)
    b_shrink = tl.exp2(b_rise)
    b_mean = b_shrink * (b_mean + b_rise * b_sum) + tl.sum(b_d * b_p, 1)
    b_sum = b_shrink * b_sum + tl.sum(b_p, 1)
    return b_new, b_sum, b_mean


@triton.jit
def head_entropy_kernel(
    Q,
    K,
    OUT,
    M,
    N,
    D,
    heads,
    scale,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    UNIT: tl.constexpr,
    FLIP: tl.constexpr,
    CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """The sum over ``BM`` of ``M`` rows of one head's entropies: ``OUT (batch, heads, ⌈M/BM⌉)``.

    Programs: ``batch · heads · ⌈M/BM⌉``. ``scale`` is not negative and includes ``log2 e``;
    ``FLIP`` turns the sign of the logits.
    """
    tiles = tl.cdiv(M, BM)
    i_bh = tl.program_id(0) // tiles
    i_b, i_h = (i_bh // heads).to(tl.int64), (i_bh % heads).to(tl.int64)
    o_m, o_d = (tl.program_id(0) % tiles) * BM + tl.arange(0, BM), tl.arange(0, BD)
    m_m = o_m < M
    p_q = Q + (i_b * stride_qb + i_h * stride_qh) * UNIT
    p_k = K + (i_b * stride_kb + i_h * stride_kh) * UNIT
    # Chunks of [BM, BD]
    b_q = ()
    for i_c in tl.static_range(CHUNKS):
        b_q += (load_vectors(p_q, o_m, stride_qn * UNIT, o_d + i_c * BD, stride_qd, m_m, D * UNIT),)
    # [BM] each
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum, b_mean = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    whole = N // BN * BN
    for i_n in range(0, whole, BN):
        b_max, b_sum, b_mean = absorb(
            b_q, p_k, i_n, N, D * UNIT, stride_kn * UNIT, stride_kd, scale, b_max, b_sum, b_mean,
            False, FLIP, CHUNKS, PRECISION, BD, BM, BN,
        )  # fmt: skip
    if whole < N:
        b_max, b_sum, b_mean = absorb(
            b_q, p_k, whole, N, D * UNIT, stride_kn * UNIT, stride_kd, scale, b_max, b_sum, b_mean,
            True, FLIP, CHUNKS, PRECISION, BD, BM, BN,
        )  # fmt: skip
    b_h = 0.6931471805599453 * (tl.log2(b_sum) - b_mean / b_sum)
    tl.store(OUT + tl.program_id(0), tl.sum(tl.where(m_m, b_h, 0.0), 0))


@triton.jit
def weigh_kernel(SUMS, W, SCALE, N, heads, tiles, sharpness, BH: tl.constexpr, BT: tl.constexpr):
    """Head weights ``W (batch, heads)`` and their largest, from entropies summed over row tiles.

    Programs: ``batch``.
    """
    i_b = tl.program_id(0).to(tl.int64)
    o_h, o_t = tl.arange(0, BH), tl.arange(0, BT)
    m_h = o_h < heads
    b_h = tl.zeros([BH], tl.float32)
    for i_t in range(0, tiles, BT):
        # [BH, BT]
        p_sums = SUMS + (i_b * heads + o_h)[:, None] * tiles + i_t + o_t[None, :]
        m_sums = m_h[:, None] & (i_t + o_t[None, :] < tiles)
        b_h += tl.sum(tl.load(p_sums, mask=m_sums, other=0.0), 1)
    b_h = tl.where(m_h, b_h / N, float("inf"))
    # Relative to the surest head, so that a sharp c gives the one-hot limit and not 0/0.
    b_w = tl.where(m_h, tl.exp2(-1.4426950408889634 * sharpness * (b_h - tl.min(b_h, 0))), 0.0)
    b_w /= tl.sum(b_w, 0)
    tl.store(W + i_b * heads + o_h, b_w, mask=m_h)
    tl.store(SCALE + i_b, tl.max(b_w, 0))


def head_entropy(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """As :func:`nerve_fast.reference.head_entropy`: ``(…, H)`` float32, in nats."""
    sums = entropy_sums(q, k, scale)
    return (sums.sum(-1) / q.shape[-2]).view(q.shape[:-2])


def entropy_sums(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """Entropies ``(B, H, tiles)`` summed over each tile of rows.

    From ``q (…, H, M, D)``, the rows, and ``k (…, H, N, D)``.
    """
    heads, rows, head_dim = q.shape[-3:]
    tokens = k.shape[-2]
    q, k = (x.reshape(-1, heads, x.shape[-2], head_dim) for x in (q, k))
    scale = head_dim**-0.5 if scale is None else scale
    size = chunk(head_dim)
    layout = strides(q, k)
    # A last round of large tiles that fills a part of the device takes as long as a whole one.
    few = len(q) * heads * triton.cdiv(rows, 128) < 2 * multiprocessors(q.device)
    config = config_for(
        "head_entropy",
        q,
        tokens,
        kept=padded(head_dim),
        most=64 if few else 128,
        aligned=layout["UNIT"] > 1,
    )
    tiles = triton.cdiv(rows, config["BM"])
    sums = q.new_empty(len(q), heads, tiles, dtype=torch.float32)
    launch(
        head_entropy_kernel,
        len(q) * heads * tiles,
        config,
        Q=q,
        K=k,
        OUT=sums,
        M=rows,
        N=tokens,
        heads=heads,
        scale=abs(scale) * LOG2_E,
        FLIP=scale < 0,
        **layout,
        CHUNKS=triton.cdiv(head_dim, size),
        PRECISION=precision(q),
        BD=size,
    )
    return sums


def entropy_weights(q: Tensor, k: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    """Head weights ``(B, H)`` from the heads' entropies, and the largest of each member, ``(B,)``.

    From ``(B, H, N, D)``; nothing comes back to the host.
    """
    sums = entropy_sums(q, k)
    batch, heads, tiles = sums.shape
    weights, scale = sums.new_empty(batch, heads), sums.new_empty(batch)
    launch(
        weigh_kernel,
        batch,
        config_for("weigh", q),
        SUMS=sums,
        W=weights,
        SCALE=scale,
        N=q.shape[-2],
        heads=heads,
        tiles=tiles,
        sharpness=sharpness,
        BH=triton.next_power_of_2(heads),
    )
    return weights, scale
