"""The local part of the walk: weights of windows as planes of the grid, and their products."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from nerve_fast.kernels.configs import LABEL_BLOCK, config_for
from nerve_fast.kernels.launch import launch
from nerve_fast.normalization import Normalization
from nerve_fast.numerics import EMPTY_ROW

EMPTY = tl.constexpr(EMPTY_ROW)
LN_EMPTY_ROW = tl.constexpr(math.log(EMPTY_ROW))


@triton.jit
def transition_kernel(
    A,
    OUT,
    N,
    height,
    width,
    temperature,
    log_self,
    EXPONENTIAL: tl.constexpr,
    CLAMPED: tl.constexpr,
    FACTOR: tl.constexpr,
    SHIFT: tl.constexpr,
    RADIUS: tl.constexpr,
    BW: tl.constexpr,
    BM: tl.constexpr,
):
    """Rows of a local affinity over their absolute sums: planes ``(batch, (2r+1)², N)`` each.

    Numerators are ``exp((a − 1)/temperature)`` if ``EXPONENTIAL``, else ``FACTOR · a + SHIFT``, and
    in the middle ``ε_self``, whose logarithm is ``log_self``, or taken of ``A`` where that is
    ``None``. Exponents are taken relative to the largest of their row. Programs:
    ``batch · ⌈N/BM⌉``.
    """
    SIDE: tl.constexpr = 2 * RADIUS + 1
    tiles = tl.cdiv(N, BM)
    i_b = (tl.program_id(0) // tiles).to(tl.int64)
    o_i, o_w = (tl.program_id(0) % tiles) * BM + tl.arange(0, BM), tl.arange(0, BW)
    i_y = (o_i // width)[:, None] + (o_w // SIDE)[None, :] - RADIUS
    i_x = (o_i % width)[:, None] + (o_w % SIDE)[None, :] - RADIUS
    m_in = (i_y >= 0) & (i_y < height) & (i_x >= 0) & (i_x < width)
    m_plane = (o_i < N)[:, None] & (o_w < SIDE * SIDE)[None, :]
    m_in &= m_plane
    m_middle = (o_w == SIDE * SIDE // 2)[None, :]
    o_a = (i_b * SIDE * SIDE + o_w)[None, :] * N + o_i[:, None]
    # [BM, BW]
    b_a = tl.load(A + o_a, mask=m_in, other=0.0)
    if EXPONENTIAL:
        b_self = log_self
        if log_self is None:
            b_self = tl.log(tl.where(m_middle, b_a, 1.0))
        b_l = tl.where(m_middle, b_self, (b_a - 1) / temperature)
        b_l = tl.where(m_in, b_l, float("-inf"))
        b_largest = tl.maximum(tl.max(b_l, 1), -1e30)
        b_n = tl.exp(b_l - b_largest[:, None])
        b_total = tl.sum(b_n, 1)
        # A row with NaN is NaN, and not empty: a maximum of GPUs drops NaN unless told not to.
        b_total = tl.maximum(b_total, 1e-37, propagate_nan=tl.PropagateNan.ALL)
        m_empty = b_largest + tl.log(b_total) <= LN_EMPTY_ROW
    else:
        b_n = b_a
        if FACTOR != 1:
            b_n *= FACTOR
        if SHIFT != 0:
            b_n += SHIFT
        if CLAMPED:
            b_n = tl.maximum(b_n, 0.0, propagate_nan=tl.PropagateNan.ALL)
        b_n = tl.where(m_in, tl.where(m_middle, b_a, b_n), 0.0)
        b_total = tl.sum(tl.abs(b_n), 1)
        m_empty = b_total <= EMPTY
        b_total = tl.maximum(b_total, 1e-37, propagate_nan=tl.PropagateNan.ALL)
    b_n = tl.where(m_empty[:, None], m_middle.to(tl.float32), b_n / b_total[:, None])
    tl.store(OUT + o_a, b_n, mask=m_plane)


@triton.jit
def add_stencil(
    b_out, factor, LOCAL, Y, i_b, o_i, o_c, N, height, width, columns, RADIUS: tl.constexpr,
    BK: tl.constexpr
):  # fmt: skip
    """``b_out + factor · S_local Y`` for tokens ``o_i`` and columns ``o_c``, without a gather."""
    SIDE: tl.constexpr = 2 * RADIUS + 1
    # Wide tiles of labels leave no registers for several loads at once.
    AT_ONCE: tl.constexpr = SIDE if BK <= 64 else 1
    o_y, o_x = o_i // width, o_i % width
    for i_group in tl.range(SIDE * SIDE // AT_ONCE, num_stages=1):
        for i_one in tl.static_range(AT_ONCE):
            i_w = i_group * AT_ONCE + i_one
            i_dy, i_dx = i_w // SIDE - RADIUS, i_w % SIDE - RADIUS
            i_y, i_x = o_y + i_dy, o_x + i_dx
            m_in = (i_y >= 0) & (i_y < height) & (i_x >= 0) & (i_x < width) & (o_i < N)
            o_j = i_b * N + o_i + i_dy * width + i_dx
            b_w = tl.load(LOCAL + (i_b * SIDE * SIDE + i_w) * N + o_i, mask=m_in, other=0.0)
            b_y = tl.load(Y + o_j[:, None] * columns + o_c[None, :], mask=m_in[:, None], other=0.0)
            b_out += (factor * b_w)[:, None] * b_y
    return b_out


@triton.jit
def local_matmul_kernel(
    LOCAL, X, OUT,
    N, height, width, columns, label_tiles,
    RADIUS: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``OUT = LOCAL · X (batch, N, columns)``. Programs: ``batch · ⌈N/BM⌉ · label_tiles``."""
    i_label = tl.program_id(0) % label_tiles
    tiles = tl.cdiv(N, BM)
    i_b = (tl.program_id(0) // label_tiles // tiles).to(tl.int64)
    o_m = (tl.program_id(0) // label_tiles % tiles) * BM + tl.arange(0, BM)
    o_c = i_label * BK + tl.arange(0, BK)
    # [BM, BK]
    b_out = tl.zeros([BM, BK], tl.float32)
    b_out = add_stencil(
        b_out, 1.0, LOCAL, X, i_b, o_m, o_c, N, height, width, columns, RADIUS, BK
    )  # fmt: skip
    tl.store(
        OUT + (i_b * N + o_m)[:, None] * columns + o_c[None, :], b_out, mask=(o_m < N)[:, None]
    )


def transition(
    planes: Tensor,
    grid: tuple[int, int],
    radius: int,
    rule: Normalization,
    temperature: float,
    self_affinity: float | None = None,
) -> Tensor:
    """``S_local`` from a local affinity, planes ``(B, (2r+1)², N)`` float32 each.

    Args:
        self_affinity: ``ε_self``, which stands in the middle of every window; ``None`` takes what
            stands there.
    """
    batch, window, tokens = planes.shape
    out = planes.new_empty(planes.shape)
    blocks = config_for("transition", planes, tokens)
    log_self = None
    if self_affinity is not None:
        log_self = math.log(self_affinity) if self_affinity else -math.inf
    launch(
        transition_kernel,
        batch * triton.cdiv(tokens, blocks["BM"]),
        blocks,
        A=planes,
        OUT=out,
        N=tokens,
        height=grid[0],
        width=grid[1],
        temperature=temperature,
        log_self=log_self,
        EXPONENTIAL=rule.exponential,
        CLAMPED=rule.clamped,
        FACTOR=rule.scale,
        SHIFT=rule.offset,
        RADIUS=radius,
        BW=triton.next_power_of_2(window),
    )
    return out


def local_transition(
    values: Tensor, grid: tuple[int, int], radius: int, rule: Normalization, temperature: float
) -> Tensor:
    """As :func:`nerve_fast.reference.local_transition`: ``(…, N, (2r+1)²)`` float32.

    In memory the window's entries are planes of the grid, as :func:`local_matmul` reads them.
    """
    out = transition(_planes(values), grid, radius, rule, temperature)
    return out.view(*values.shape[:-2], *out.shape[1:]).mT


def local_matmul(weights: Tensor, grid: tuple[int, int], radius: int, x: Tensor) -> Tensor:
    """As :func:`nerve_fast.reference.local_matmul`: ``(…, N, K)`` float32.

    Args:
        weights: ``(…, N, (2r+1)²)``.
        x: ``(…, N, K)``; its leading dimensions broadcast with those of ``weights``.
    """
    tokens, labels = x.shape[-2:]
    batch = torch.broadcast_shapes(weights.shape[:-2], x.shape[:-2])
    block = min(max(triton.next_power_of_2(labels), 16), LABEL_BLOCK[4])
    tiles = triton.cdiv(labels, block)
    columns = block * tiles
    X = pad(x.float().expand(*batch, tokens, labels), (0, columns - labels)).contiguous()
    out = torch.empty_like(X)
    blocks = config_for("local_matmul", X, tokens)
    launch(
        local_matmul_kernel,
        math.prod(batch) * triton.cdiv(tokens, blocks["BM"]) * tiles,
        blocks,
        LOCAL=_planes(weights.expand(*batch, *weights.shape[-2:])),
        X=X,
        OUT=out,
        N=tokens,
        height=grid[0],
        width=grid[1],
        columns=columns,
        label_tiles=tiles,
        RADIUS=radius,
        BK=block,
    )
    return out[..., :labels]


def local_series(
    weights: Tensor, grid: tuple[int, int], radius: int, G: Tensor, alpha: float, steps: int
) -> Tensor:
    """As :func:`nerve_fast.reference.local_series`: ``(…, N, K)`` float32."""
    # Planes in memory, which `local_matmul` takes without a copy.
    planes = weights.float().mT.contiguous().mT
    Y = G.float()
    for _ in range(steps):
        Y = torch.add(G, local_matmul(planes, grid, radius, Y), alpha=alpha)
    return Y / sum(alpha**t for t in range(steps + 1))


def _planes(values: Tensor) -> Tensor:
    """``(…, N, (2r+1)²)`` as planes of the grid, ``(B, (2r+1)², N)`` float32, contiguous."""
    return values.float().mT.reshape(-1, values.shape[-1], values.shape[-2]).contiguous()
