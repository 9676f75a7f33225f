"""The walk at ``β = 0``: neighbours only, so nothing but the stencil."""

import triton
import triton.language as tl
from torch import Tensor

from nerve_fast.kernels.operands import Operands
from nerve_fast.kernels.steps import finish


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
