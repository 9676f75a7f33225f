"""The route ``factorized``: ``Q̃ (K̃ᵀ Y)``, exact where numerators are affine in the affinity."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_fast.kernels.launch import precision
from nerve_fast.kernels.numerators import coefficients, load_packed, row_totals
from nerve_fast.kernels.operands import Operands
from nerve_fast.kernels.steps import arrive, collect, finish
from nerve_fast.numerics import EMPTY_ROW


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
    N, height, width, labels, columns, label_tiles, moment_rows,
    stride_gb, stride_gn, stride_gk, per_temperature, floor, alpha, beta, out_scale,
    EXPONENTIAL: tl.constexpr, FACTOR: tl.constexpr, SHIFT: tl.constexpr, GAIN: tl.constexpr,
    CHANNELS: tl.constexpr, RADIUS: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
    BC: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``Q̃ (K̃ᵀ V)``, exact where numerators are affine in the affinity.

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
    p_moments = MOMENTS + i_b * moment_rows * columns
    # [BM, BK]
    b_acc = tl.zeros([BM, BK], tl.float32)
    for i_c in range(0, CHANNELS, BC):
        o_c = i_c + tl.arange(0, BC)
        b_q = load_packed(PQ, o_q, o_c, CHANNELS).to(tl.float32)
        b_m = tl.load(p_moments + o_c[:, None] * columns + o_k[None, :])
        b_acc = tl.dot(b_q, b_m, b_acc, input_precision=PRECISION)
    slope, b_offset, unit = coefficients(
        SCALE, None, i_b, o_m, N, per_temperature, EXPONENTIAL, FACTOR, SHIFT, GAIN, BM
    )
    if SHIFT != 0:
        b_sum = tl.load(p_moments + CHANNELS * columns + o_k)
        b_acc = b_acc * slope + b_sum[None, :] * b_offset[:, None]
    finish(
        b_acc, unit, i_b, i_label, o_m, m_m, Y, G, LOCAL, TOTALS, OUT, OUT_V, N, height, width,
        labels, columns, stride_gb, stride_gn, stride_gk, floor, alpha, beta, out_scale,
        True, RADIUS, LAST, BM, BK,
    )  # fmt: skip


class Factorized:
    """Steps by way of ``K̃ᵀ V``, which is ``C × K``.

    Args:
        operands: what the steps of the walk share; its normalisation is linear.
    """

    def __init__(self, operands: Operands):
        self.operands = operands
        self.totals = row_totals(operands)
        floor = EMPTY_ROW
        if self.totals is None:
            # In a row without mass the sum is the offsets' less nearly as much: what rounding
            # leaves of it is no mass.
            dtype = operands.q.dtype
            units = 16 if dtype == torch.float32 else 1
            mass = operands.tokens * operands.normalization.offset
            floor = units * torch.finfo(dtype).eps * mass
        self.floor = floor / operands.share

    def step(self, Y: Tensor, values: Tensor, **out) -> None:
        """Start :func:`moments_kernel` and :func:`factorized_step_kernel`.

        Arguments are as in :mod:`nerve_fast.kernels.walk`.
        """
        operands = self.operands
        moments = self._moments(values)
        operands.launch(
            factorized_step_kernel,
            operands.tokens,
            PQ=operands.packed_q,
            MOMENTS=moments,
            # Not this kernel's block of channels: that of the kernel which wrote them.
            moment_rows=moments.shape[1],
            Y=Y,
            TOTALS=self.totals,
            floor=self.floor,
            beta=operands.config.beta,
            CHANNELS=operands.channels,
            PRECISION=precision(operands.q),
            **operands.coefficients,
            **operands.tail,
            **out,
        )

    def _moments(self, values: Tensor) -> Tensor:
        """``K̃ᵀ V`` and the column sums of ``V``, ``(B, C + BC, columns)`` float32."""
        operands = self.operands
        config = operands.config_of(moments_kernel, labels=operands.label_block)
        rows = config["BC"]
        moments = operands.q.new_empty(
            operands.batch, operands.channels + rows, operands.columns, dtype=torch.float32
        )
        operands.launch_split(
            moments_kernel,
            config,
            operands.channels // rows + 1,
            rows,
            PK=operands.packed_k,
            V=values,
            MOMENTS=moments,
            M=operands.keys,
            columns=operands.columns,
            label_tiles=operands.label_tiles,
            CHANNELS=operands.channels,
            PRECISION=precision(operands.q),
        )
        return moments
