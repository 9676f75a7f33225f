"""The route ``streaming``: every step makes the affinities anew, tile by tile."""

import triton
import triton.language as tl
from torch import Tensor

from nerve_fast.kernels.numerators import (
    affinities,
    coefficients,
    load_chunks,
    numerators,
    row_offsets,
    row_totals,
)
from nerve_fast.kernels.operands import Operands
from nerve_fast.kernels.steps import arrive, collect, finish
from nerve_fast.numerics import EMPTY_ROW


@triton.jit
def streaming_step_kernel(
    PQ, PK, V, Y, G, LOCAL, TOTALS, OFFSETS, SCALE, OUT, OUT_V, PARTIAL, ARRIVED,
    N, M, first, height, width, labels, columns, label_tiles, splits,
    stride_gb, stride_gn, stride_gk, per_temperature, floor, alpha, beta, out_scale,
    EXPONENTIAL: tl.constexpr, CLAMPED: tl.constexpr, FACTOR: tl.constexpr, SHIFT: tl.constexpr,
    GAIN: tl.constexpr, CHANNELS: tl.constexpr, RADIUS: tl.constexpr, SPLIT: tl.constexpr,
    LAST: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr, BC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Rows from ``first`` on, with affinities made, used and forgotten tile by tile.

    Programs: ``batch · ⌈(N−first)/BM⌉ · label_tiles · splits``. With exponentials this is
    attention with head dimension ``C`` and values ``V``, whose maxima are known beforehand.
    """
    i_split = tl.program_id(0) % splits
    i_out = tl.program_id(0) // splits
    i_label = i_out % label_tiles
    tiles = tl.cdiv(N - first, BM)
    i_b = (i_out // label_tiles // tiles).to(tl.int64)
    o_m = first + (i_out // label_tiles % tiles) * BM + tl.arange(0, BM)
    m_m = o_m < N
    slope, b_offset, unit = coefficients(
        SCALE, OFFSETS, i_b, o_m, N, per_temperature, EXPONENTIAL, FACTOR, SHIFT, GAIN, BM
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
        b_n = numerators(b_s, slope, b_offset, EXPONENTIAL, CLAMPED, SHIFT)
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
    finish(
        b_acc, unit, i_b, i_label, o_m, m_m, Y, G, LOCAL, TOTALS, OUT, OUT_V, N, height, width,
        labels, columns, stride_gb, stride_gn, stride_gk, floor, alpha, beta, out_scale,
        True, RADIUS, LAST, BM, BK,
    )  # fmt: skip


class Streaming:
    """Steps that make the rows of ``S_global`` from ``first`` on.

    Args:
        operands: what the steps of the walk share.
        first: rows before it are made by another.
        statistics: absolute row sums and offsets of exponents, where they are known already.
    """

    def __init__(
        self,
        operands: Operands,
        first: int = 0,
        statistics: tuple[Tensor | None, Tensor | None] | None = None,
    ):
        self.operands, self.first = operands, first
        self.totals, self.offsets = statistics or (row_totals(operands), row_offsets(operands))

    def step(self, Y: Tensor, values: Tensor, **out) -> None:
        """Start :func:`streaming_step_kernel`; arguments as in :mod:`nerve_fast.kernels.walk`."""
        operands = self.operands
        config = operands.config_of(
            streaming_step_kernel, labels=operands.label_block, kept=operands.channels
        )
        operands.launch_split(
            streaming_step_kernel,
            config,
            triton.cdiv(operands.tokens - self.first, config["BM"]),
            config["BM"],
            V=values,
            Y=Y,
            TOTALS=self.totals,
            OFFSETS=self.offsets,
            first=self.first,
            floor=EMPTY_ROW / operands.share,
            beta=operands.config.beta,
            **operands.making,
            **operands.tail,
            **out,
        )
