r"""Numerators of ``S_global``: what they are made from, how, and one pass over all of them.

With ``s = Q̃ K̃ᵀ`` the affinity is ``a = w_max s``. A numerator is ``2^(s·slope + offset)`` if the
normalisation is exponential; otherwise it is ``s·slope + offset``, clamped at 0 if the
normalisation is. A factor that all numerators of a row share has no effect, because they are
divided by their sum. It is chosen so that they stay within 16 bits for weights of any size, and
``unit`` times their sum is the row sum of the definition.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_fast.kernels.launch import launch
from nerve_fast.normalization import Normalization
from nerve_fast.numerics import EMPTY_ROW

LOG2_EMPTY_ROW = tl.constexpr(math.log2(EMPTY_ROW))

MAX_EXPONENT = 50
"""Numerators up to e^50 are far from overflow in float32 and bfloat16."""

ROUNDING = 1e-5
"""Head weights that sum to 1 do so up to this much."""


@triton.jit
def coefficients(
    SCALE, OFFSETS, i_b, o_m, N, per_temperature, EXPONENTIAL: tl.constexpr, FACTOR: tl.constexpr,
    SHIFT: tl.constexpr, GAIN: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    """``slope``, ``offset [BM]`` and ``unit`` for the rows ``o_m``.

    ``per_temperature`` is ``log2 e / τ``. ``GAIN · (FACTOR · a + SHIFT)`` is the affine map.
    """
    scale = tl.load(SCALE + i_b)
    b_offset = tl.zeros([BM], tl.float32)
    if EXPONENTIAL:
        slope, unit = scale * per_temperature, 1.0
        b_offset -= per_temperature
        if OFFSETS is not None:
            b_offset = tl.load(OFFSETS + i_b * N + o_m, mask=o_m < N, other=float("-inf"))
    elif SHIFT != 0:
        larger = tl.maximum(scale, 1.0)
        slope, unit = FACTOR * scale / larger, GAIN * larger
        b_offset += SHIFT / larger
    else:
        # A factor that the whole row shares falls out of it.
        slope, unit = 1.0, GAIN * FACTOR * scale
    return slope, b_offset, unit


@triton.jit
def numerators(
    b_s, slope, b_offset, EXPONENTIAL: tl.constexpr, CLAMPED: tl.constexpr, SHIFT: tl.constexpr
):
    """Numerators ``[BM, BN]`` from ``s``."""
    if EXPONENTIAL:
        b_s = tl.exp2(b_s * slope + b_offset[:, None])
    else:
        if SHIFT != 0:
            b_s = b_s * slope + b_offset[:, None]
        if CLAMPED:
            # A maximum of GPUs drops NaN unless it is told not to.
            b_s = tl.maximum(b_s, 0.0, propagate_nan=tl.PropagateNan.ALL)
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
        # What is left is a multiple of 64: one block of 128, one of 64, or both.
        if CHANNELS % BC >= 128:
            b_q += (load_packed(PQ, o_row, CHANNELS // BC * BC + tl.arange(0, 128), CHANNELS),)
        if CHANNELS % BC % 128 > 0:
            b_q += (load_packed(PQ, o_row, CHANNELS - 64 + tl.arange(0, 64), CHANNELS),)
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
        if CHANNELS % BC >= 128:
            b_k = load_packed(PK, o_k, CHANNELS // BC * BC + tl.arange(0, 128), CHANNELS)
            b_s = tl.dot(b_q[CHANNELS // BC], tl.trans(b_k), b_s, input_precision=PRECISION)
        if CHANNELS % BC % 128 > 0:
            b_k = load_packed(PK, o_k, CHANNELS - 64 + tl.arange(0, 64), CHANNELS)
            b_s = tl.dot(b_q[-1], tl.trans(b_k), b_s, input_precision=PRECISION)
    else:
        for i_c in range(0, CHANNELS, BC):
            b_row = load_packed(PQ, o_q, i_c + tl.arange(0, BC), CHANNELS)
            b_k = load_packed(PK, o_k, i_c + tl.arange(0, BC), CHANNELS)
            b_s = tl.dot(b_row, tl.trans(b_k), b_s, input_precision=PRECISION)
    return b_s


@triton.jit
def count_arrival(ARRIVED, i_out):
    """How many programs had left their shares of a tile before this one, which has left its own."""
    # All threads' shares are written before the one thread that counts says so.
    tl.debug_barrier()
    return tl.atomic_add(ARRIVED + i_out, 1, sem="acq_rel", scope="gpu")


@triton.jit
def row_statistic_kernel(
    PQ, PK, COUNTS, SCALE, OUT, PARTIAL, ARRIVED,
    N, M, splits, per_temperature, lift,
    EXPONENTIAL: tl.constexpr, CLAMPED: tl.constexpr, FACTOR: tl.constexpr, SHIFT: tl.constexpr,
    GAIN: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    SPLIT: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One number a row, ``OUT (batch, N)``, from one streaming pass.

    ``EXPONENTIAL``: the offset that makes the row's largest numerator 2^``lift``, −∞ where the row
    is empty. Otherwise the absolute row sum of the numerators. ``COUNTS (batch, M)``: tokens behind
    each key. Programs: ``batch · ⌈N/BM⌉ · splits``.
    """
    i_split = tl.program_id(0) % splits
    i_out = tl.program_id(0) // splits
    tiles = tl.cdiv(N, BM)
    i_b = (i_out // tiles).to(tl.int64)
    o_m = (i_out % tiles) * BM + tl.arange(0, BM)
    slope, b_offset, _ = coefficients(
        SCALE, None, i_b, o_m, N, per_temperature, EXPONENTIAL, FACTOR, SHIFT, GAIN, BM
    )
    o_q = i_b * N + tl.minimum(o_m, N - 1)
    b_q = load_chunks(PQ, o_q, CHANNELS, BC, RESIDENT)
    # [BM] each
    b_max, b_sum = tl.full([BM], -1e30, tl.float32), tl.zeros([BM], tl.float32)
    span = tl.cdiv(tl.cdiv(M, BN), splits) * BN
    for i_n in range(i_split * span, min(i_split * span + span, M), BN):
        o_n = i_n + tl.arange(0, BN)
        b_s = affinities(
            b_q, PQ, PK, o_q, i_b * M + tl.minimum(o_n, M - 1),
            CHANNELS, PRECISION, RESIDENT, BC, BM, BN,
        )  # fmt: skip
        b_count = tl.load(COUNTS + i_b * M + o_n, mask=o_n < M, other=0.0)
        if EXPONENTIAL:
            b_new = tl.maximum(b_max, tl.max(b_s, 1) * slope)
            b_p = tl.exp2(b_s * slope - b_new[:, None]) * b_count[None, :]
            b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(b_p, 1)
            b_max = b_new
        else:
            b_n = numerators(b_s, slope, b_offset, EXPONENTIAL, CLAMPED, SHIFT)
            b_sum += tl.sum(tl.abs(b_n) * b_count[None, :], 1)
    if SPLIT:
        p_share = PARTIAL + i_out.to(tl.int64) * splits * 2 * BM + tl.arange(0, BM)
        tl.store(p_share + i_split * 2 * BM, b_max)
        tl.store(p_share + i_split * 2 * BM + BM, b_sum)
        if count_arrival(ARRIVED, i_out) != splits - 1:
            return
        b_max, b_sum = tl.full([BM], -1e30, tl.float32), tl.zeros([BM], tl.float32)
        for i_s in range(splits):
            b_its_max = tl.load(p_share + i_s * 2 * BM, cache_modifier=".cg")
            b_its_sum = tl.load(p_share + i_s * 2 * BM + BM, cache_modifier=".cg")
            b_new = tl.maximum(b_max, b_its_max)
            b_sum = b_sum * tl.exp2(b_max - b_new) + b_its_sum * tl.exp2(b_its_max - b_new)
            b_max = b_new
        tl.store(ARRIVED + i_out, 0)
    if EXPONENTIAL:
        m_empty = b_max - per_temperature + tl.log2(b_sum) <= LOG2_EMPTY_ROW
        b_sum = tl.where(m_empty, float("-inf"), lift - b_max)
    tl.store(OUT + i_b * N + o_m, b_sum, mask=o_m < N)


def affine_map(normalization: Normalization) -> tuple[float, float, float]:
    """``FACTOR``, ``SHIFT`` and ``GAIN``: the map over a power of two that brings it within 1.

    An exponential has none, and one set of constants for all temperatures.
    """
    if normalization.exponential:
        return 1.0, 0.0, 1.0
    reach = abs(normalization.scale) + abs(normalization.offset)
    gain = 2.0 ** math.ceil(math.log2(reach))
    return normalization.scale / gain, normalization.offset / gain, gain


def row_totals(operands) -> Tensor | None:
    """Absolute row sums ``(B, N)``, or ``None`` where they are the sums: nothing is negative.

    Args:
        operands: the :class:`~nerve_fast.kernels.operands.Operands` of a walk.
    """
    normalization = operands.normalization
    may_be_negative = normalization.signed or operands.max_weight_sum > 1 + ROUNDING
    if not (normalization.linear and may_be_negative):
        return None
    return row_statistic(operands) / operands.share


def row_offsets(operands, lift: float | None = None) -> Tensor | None:
    """Exponents' offsets ``(B, N)`` that make a row's largest numerator 2^``lift``.

    ``None`` where numerators are no exponentials, or where ``lift`` is ``None`` and numerators are
    in range as they are.
    """
    config, q = operands.config, operands.q
    if not operands.normalization.exponential:
        return None
    if lift is None:
        # Cosines of rounded vectors exceed 1 by less than the rounding.
        largest = operands.max_weight_sum * (1 + torch.finfo(q.dtype).eps)
        if q.dtype == torch.float16:
            # From 2¹⁴ down float16 keeps 2⁻³⁸ of a row's largest.
            lift = 14.0
        elif (largest - 1) / config.temperature > MAX_EXPONENT:
            lift = 0.0
        else:
            return None
    return row_statistic(operands, lift)


def row_statistic(operands, lift: float = 0.0) -> Tensor:
    """What :func:`row_statistic_kernel` finds, ``(B, N)`` float32."""
    out = operands.q.new_empty(operands.batch, operands.tokens, dtype=torch.float32)
    config = operands.config_of(row_statistic_kernel, kept=operands.channels)
    tiles = operands.batch * triton.cdiv(operands.tokens, config["BM"])
    # Of each row a maximum and a sum.
    shares = operands.shares(row_statistic_kernel, tiles, config["BN"], 2 * config["BM"])
    launch(
        row_statistic_kernel,
        tiles * shares["splits"],
        config,
        COUNTS=operands.counts,
        OUT=out,
        N=operands.tokens,
        lift=lift,
        **operands.making,
        **shares,
    )
    return out
