"""The route ``dense``: the numerators of the first rows are made once and stored."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerve_fast.kernels.launch import launch, precision
from nerve_fast.kernels.numerators import (
    affinities,
    coefficients,
    numerators,
    row_offsets,
    row_totals,
)
from nerve_fast.kernels.operands import Operands
from nerve_fast.kernels.steps import arrive, collect, finish
from nerve_fast.kernels.streaming import Streaming
from nerve_fast.numerics import EMPTY_ROW

STORED_COLUMNS = 128
"""Rows of a stored ``S`` are padded to a multiple of this, so that tiles need no mask."""

FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)


@triton.jit
def numerators_kernel(
    PQ, PK, OFFSETS, SCALE, S,
    N, M, stored, width_s, per_temperature, headroom,
    EXPONENTIAL: tl.constexpr, CLAMPED: tl.constexpr, FACTOR: tl.constexpr, SHIFT: tl.constexpr,
    GAIN: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr, BC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
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
        SCALE, OFFSETS, i_b, o_m, N, per_temperature, EXPONENTIAL, FACTOR, SHIFT, GAIN, BM
    )
    o_q, o_k = i_b * N + tl.minimum(o_m, N - 1), i_b * M + tl.minimum(o_n, M - 1)
    b_s = affinities((), PQ, PK, o_q, o_k, CHANNELS, PRECISION, False, BC, BM, BN)
    b_n = numerators(b_s, slope, b_offset, EXPONENTIAL, CLAMPED, SHIFT) * headroom
    p_s = S + (i_b * stored + o_m)[:, None] * width_s + o_n[None, :]
    m_s = (o_m < stored)[:, None] & (o_n < width_s)[None, :]
    tl.store(p_s, b_n.to(S.dtype.element_ty), mask=m_s)


@triton.jit
def dense_step_kernel(
    S, V, Y, G, LOCAL, TOTALS, SCALE, OUT, OUT_V, PARTIAL, ARRIVED,
    N, M, stored, width_s, height, width, labels, columns, label_tiles, splits,
    stride_gb, stride_gn, stride_gk, per_temperature, floor, alpha, beta, out_scale,
    EXPONENTIAL: tl.constexpr, FACTOR: tl.constexpr, SHIFT: tl.constexpr, GAIN: tl.constexpr,
    RADIUS: tl.constexpr, SPLIT: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
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
    _, _, unit = coefficients(
        SCALE, None, i_b, o_m, N, per_temperature, EXPONENTIAL, FACTOR, SHIFT, GAIN, BM
    )
    finish(
        b_acc, unit, i_b, i_label, o_m, m_m, Y, G, LOCAL, TOTALS, OUT, OUT_V, N, height, width,
        labels, columns, stride_gb, stride_gn, stride_gk, floor, alpha, beta, out_scale,
        True, RADIUS, LAST, BM, BK,
    )  # fmt: skip


class Dense:
    """Steps with the first rows of ``S_global`` stored; the others are made again each step.

    Args:
        operands: what the steps of the walk share.
        stored_rows: how many are stored, at least 1.
        dtype: of what is stored. In float8 a row is kept relative to its largest numerator.

    Raises:
        ValueError: ``dtype`` is float8, and numerators may be negative.
    """

    def __init__(self, operands: Operands, stored_rows: int, dtype: torch.dtype):
        self.operands = operands
        fp8 = dtype in FP8
        self.totals = row_totals(operands)
        if fp8 and self.totals is not None:
            raise ValueError(
                f"stored_dtype is {dtype}, and with the normalization "
                f"{operands.normalization.name!r} and these head weights numerators can be "
                "negative; expected a dtype of 16 or 32 bits"
            )
        # A row in float8 has a scale of its own.
        offsets = row_offsets(operands, lift=0.0 if fp8 else None)
        self.S = self._stored(min(stored_rows, operands.tokens), dtype, offsets)
        self.rest = None
        if stored_rows < operands.tokens:
            self.rest = Streaming(operands, stored_rows, (self.totals, offsets))

    def step(self, Y: Tensor, values: Tensor, **out) -> None:
        """Start :func:`dense_step_kernel`; arguments as in :mod:`nerve_fast.kernels.walk`."""
        operands = self.operands
        stored, width = self.S.shape[1:]
        config = operands.config_of(dense_step_kernel, labels=operands.label_block)
        operands.launch_split(
            dense_step_kernel,
            config,
            triton.cdiv(stored, config["BM"]),
            config["BM"],
            S=self.S,
            V=values,
            Y=Y,
            TOTALS=self.totals,
            M=operands.keys,
            stored=stored,
            width_s=width,
            floor=EMPTY_ROW / operands.share,
            beta=operands.config.beta,
            PRECISION=precision(operands.q),
            **operands.coefficients,
            **operands.tail,
            **out,
        )
        if self.rest is not None:
            self.rest.step(Y, values, **out)

    def _stored(self, rows: int, dtype: torch.dtype, offsets: Tensor | None) -> Tensor:
        """The first ``rows`` rows of numerators, ``(B, rows, M…)``."""
        operands = self.operands
        width = triton.cdiv(operands.keys, STORED_COLUMNS) * STORED_COLUMNS
        S = operands.q.new_empty(operands.batch, rows, width, dtype=dtype)
        config = operands.config_of(numerators_kernel)
        tiles = triton.cdiv(rows, config["BM"]) * triton.cdiv(width, config["BN"])
        launch(
            numerators_kernel,
            operands.batch * tiles,
            config,
            OFFSETS=offsets,
            S=S,
            N=operands.tokens,
            stored=rows,
            width_s=width,
            headroom=self._headroom(dtype),
            **operands.making,
        )
        return S

    def _headroom(self, dtype: torch.dtype) -> float:
        """A power of two that takes the largest numerator near the end of float8's range."""
        if dtype not in FP8:
            return 1.0
        # Of ``float8_e4m3fn`` that is 448, of AMD's ``float8_e4m3fnuz`` 240.
        last = 2.0 ** math.floor(math.log2(torch.finfo(dtype).max))
        if self.operands.normalization.exponential:
            return last
        # Relative to the largest weight affinities reach the number of heads.
        return 2.0 ** -math.ceil(math.log2(self.operands.q.shape[1])) * last
