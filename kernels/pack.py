"""All heads in one inner product: ``A = Q̃ K̃ᵀ`` with ``Q̃``, ``K̃`` packed from ``H`` heads."""

import triton
import triton.language as tl
from torch import Tensor

from nerve_fast.kernels.configs import config_for
from nerve_fast.kernels.launch import launch
from nerve_fast.kernels.vectors import inverse_norm, load_vectors, strides

PACKED_ALIGNMENT = 64
"""Packed heads are padded with zeros to a multiple of this many channels."""


@triton.jit
def pack_kernel(
    Q,
    K,
    W,
    PQ,
    PK,
    N,
    D,
    heads,
    channels,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    UNIT: tl.constexpr,
    BH: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
):
    """``Q̃ = concat_h(w_h/w_max q̂_h)`` and ``K̃ = concat_h(k̂_h)``, ``(batch, N, channels)`` each.

    Programs: ``batch · heads · ⌈N/BM⌉``. Relative to the largest weight nothing leaves the range of
    16 bits; the steps multiply by it in float32. The last head's programs write the padding.
    """
    tiles = tl.cdiv(N, BM)
    i_bh = tl.program_id(0) // tiles
    i_b, i_h = (i_bh // heads).to(tl.int64), (i_bh % heads).to(tl.int64)
    o_n, o_d = (tl.program_id(0) % tiles) * BM + tl.arange(0, BM), tl.arange(0, BD)
    m_n = o_n < N
    o_h = tl.arange(0, BH)
    b_w = tl.load(W + i_b * heads + o_h, mask=o_h < heads, other=0.0)
    b_scale = tl.load(W + i_b * heads + i_h) / tl.maximum(tl.max(b_w, 0), 1e-37)
    D *= UNIT
    # [BM, BD]
    p_q = Q + (i_b * stride_qb + i_h * stride_qh) * UNIT
    p_k = K + (i_b * stride_kb + i_h * stride_kh) * UNIT
    b_q = load_vectors(p_q, o_n, stride_qn * UNIT, o_d, stride_qd, m_n, D).to(tl.float32)
    b_k = load_vectors(p_k, o_n, stride_kn * UNIT, o_d, stride_kd, m_n, D).to(tl.float32)
    b_q *= (b_scale * inverse_norm(tl.sum(b_q * b_q, 1)))[:, None]
    b_k *= inverse_norm(tl.sum(b_k * b_k, 1))[:, None]
    o_row = (i_b * N + o_n)[:, None] * channels + i_h * D
    m_out = m_n[:, None] & (o_d[None, :] < D)
    tl.store(PQ + o_row + o_d[None, :], b_q.to(PQ.dtype.element_ty), mask=m_out)
    tl.store(PK + o_row + o_d[None, :], b_k.to(PK.dtype.element_ty), mask=m_out)
    if i_h == heads - 1:
        padding = channels - heads * D
        # Fewer than 64 channels.
        o_p = tl.arange(0, 64)
        m_pad = m_n[:, None] & (o_p[None, :] < padding)
        o_row = (i_b * N + o_n)[:, None] * channels + heads * D
        b_zero = tl.zeros([BM, 64], PQ.dtype.element_ty)
        tl.store(PQ + o_row + o_p[None, :], b_zero, mask=m_pad)
        tl.store(PK + o_row + o_p[None, :], b_zero, mask=m_pad)


def pack(q: Tensor, k: Tensor, head_weights: Tensor) -> tuple[Tensor, Tensor]:
    """``Q̃`` and ``K̃``, ``(B, N, C)`` each, from ``(B, H, N, D)`` and ``(B, H)`` float32.

    ``C`` is ``H·D`` up to the next multiple of 64. The weights in ``Q̃`` are relative to their
    largest.
    """
    batch, heads, tokens, head_dim = q.shape
    channels = triton.cdiv(heads * head_dim, PACKED_ALIGNMENT) * PACKED_ALIGNMENT
    packed_q, packed_k = (q.new_empty(batch, tokens, channels) for _ in range(2))
    config = config_for("pack", q, tokens)
    launch(
        pack_kernel,
        batch * heads * triton.cdiv(tokens, config["BM"]),
        config,
        Q=q,
        K=k,
        W=head_weights,
        PQ=packed_q,
        PK=packed_k,
        N=tokens,
        heads=heads,
        channels=channels,
        **strides(q, k),
        BH=triton.next_power_of_2(heads),
        BD=max(triton.next_power_of_2(head_dim), 16),
    )
    return packed_q, packed_k
