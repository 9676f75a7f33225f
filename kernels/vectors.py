"""Vectors of single heads as kernels load them: norms, blocks of channels, strides."""

import triton
import triton.language as tl
from torch import Tensor

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


def chunk(head_dim: int) -> int:
    """Channels of a head in one block: 64, or 32 where that wastes less."""
    return min((64, 32), key=lambda size: (triton.cdiv(head_dim, size) * size, -size))


def padded(head_dim: int) -> int:
    """``head_dim`` in whole blocks."""
    return triton.cdiv(head_dim, chunk(head_dim)) * chunk(head_dim)


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
