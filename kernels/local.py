"""The walk at ``β = 0``, and the local matrix alone: neighbours only, nothing but the stencil."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from nerve_fast.kernels.configs import config_for
from nerve_fast.kernels.launch import launch
from nerve_fast.kernels.operands import Operands
from nerve_fast.kernels.stencil import add_stencil, transition
from nerve_fast.kernels.steps import finish
from nerve_fast.normalization import Normalization

COLUMN_BLOCK = 32
"""Columns of a tile of :func:`local_product_kernel`; more are cut, fewer are padded."""


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


class Local:
    """Steps of a walk without a global part.

    Args:
        operands: what the steps of the walk share.
    """

    def __init__(self, operands: Operands):
        self.operands = operands

    def step(
        self, Y: Tensor, values: None, *, OUT: Tensor, LAST: bool, out_scale: float, OUT_V: None
    ) -> None:
        """Start :func:`local_step_kernel`; arguments as in :mod:`nerve_fast.kernels.walk`."""
        operands = self.operands
        operands.launch(
            local_step_kernel,
            operands.tokens,
            Y=Y,
            OUT=OUT,
            LAST=LAST,
            out_scale=out_scale,
            **operands.tail,
        )


@triton.jit
def local_product_kernel(
    LOCAL, X, OUT, N, height, width, columns,
    RADIUS: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``OUT = S X`` for planes ``LOCAL`` and ``X (batch, N, columns)``, whole tiles of columns.

    Programs: ``batch · ⌈N/BM⌉ · columns/BK``.
    """
    column_tiles = columns // BK
    tiles = tl.cdiv(N, BM)
    o_c = (tl.program_id(0) % column_tiles) * BK + tl.arange(0, BK)
    i_b = (tl.program_id(0) // column_tiles // tiles).to(tl.int64)
    o_m = (tl.program_id(0) // column_tiles % tiles) * BM + tl.arange(0, BM)
    b_out = tl.zeros([BM, BK], tl.float32)
    b_out = add_stencil(
        b_out, 1.0, LOCAL, X, i_b, o_m, o_c, N, height, width, columns, RADIUS, BK
    )  # fmt: skip
    tl.store(OUT + (i_b * N + o_m)[:, None] * columns + o_c[None, :], b_out, (o_m < N)[:, None])


def local_transition(
    values: Tensor,
    grid: tuple[int, int],
    radius: int,
    rule: Normalization,
    temperature: float,
) -> Tensor:
    """As :func:`nerve_fast.reference.local_transition`, in float32."""
    planes = values.float().reshape(-1, *values.shape[-2:]).mT.contiguous()
    return transition(planes, grid, radius, rule, temperature).mT.reshape(values.shape)


def local_matmul(weights: Tensor, grid: tuple[int, int], radius: int, x: Tensor) -> Tensor:
    """As :func:`nerve_fast.reference.local_matmul`, float32 in and out."""
    batch = torch.broadcast_shapes(weights.shape[:-2], x.shape[:-2])
    planes = weights.expand(*batch, *weights.shape[-2:]).mT.contiguous()
    tokens, labels = x.shape[-2:]
    columns = triton.cdiv(labels, COLUMN_BLOCK) * COLUMN_BLOCK
    padded = pad(x.expand(*batch, tokens, labels), (0, columns - labels)).contiguous()
    out = torch.empty_like(padded)
    blocks = config_for("local_step", x, tokens, labels=COLUMN_BLOCK)
    programs = batch.numel() * triton.cdiv(tokens, blocks["BM"]) * (columns // COLUMN_BLOCK)
    launch(
        local_product_kernel,
        programs,
        blocks,
        LOCAL=planes,
        X=padded,
        OUT=out,
        N=tokens,
        height=grid[0],
        width=grid[1],
        columns=columns,
        RADIUS=radius,
        BK=COLUMN_BLOCK,
    )
    return out[..., :labels]
