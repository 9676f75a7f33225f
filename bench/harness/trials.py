"""``python -m bench.harness.trials``: what was tried on the kernels and left out, as compiled code.

Each trial is the part of a kernel that an idea would change, once as it is shipped and once with
the idea, compiled for a GPU that need not be there. Nothing here is ever started.
"""

import argparse
import sys

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from nerve_fast.kernels.compiled import Compiled, compile_for
from nerve_fast.kernels.launch import Config, Launch, interpreted
from nerve_fast.kernels.numerators import affinities, load_chunks

TOKENS, HEAD_DIM, HEADS, COLUMNS, WIDTH = 4096, 64, 5, 32, 64
CHANNELS = HEADS * HEAD_DIM


@triton.jit
def streaming_tiles_kernel(
    PQ, PK, V, OUT, N, DESCRIBED: tl.constexpr, CHANNELS: tl.constexpr, BC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The products of a streaming step; keys and values by pointers, or by TMA descriptors."""
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    b_q = load_chunks(PQ, o_m, CHANNELS, BC, True)
    b_acc = tl.zeros([BM, BK], tl.float32)
    if DESCRIBED:
        keys = tl.make_tensor_descriptor(PK, [N, CHANNELS], [CHANNELS, 1], [BN, BC])
        values = tl.make_tensor_descriptor(V, [N, BK], [BK, 1], [BN, BK])
    for i_n in range(0, N, BN):
        o_n = i_n + tl.arange(0, BN)
        if DESCRIBED:
            b_s = tl.zeros([BM, BN], tl.float32)
            for i_c in tl.static_range(CHANNELS // BC):
                b_s = tl.dot(b_q[i_c], keys.load([i_n, i_c * BC]).T, b_s)
            b_v = values.load([i_n, 0])
        else:
            b_s = affinities(b_q, PQ, PK, o_m, o_n, CHANNELS, "tf32", True, BC, BM, BN)
            b_v = tl.load(V + o_n[:, None] * BK + tl.arange(0, BK)[None, :])
        b_acc = tl.dot(tl.exp2(b_s).to(V.dtype.element_ty), b_v, b_acc)
    tl.store(OUT + o_m[:, None] * BK + tl.arange(0, BK)[None, :], b_acc)


@triton.jit
def dense_tiles_kernel(
    S, V, OUT, OUT_V, N, DEPENDENT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """The product of a dense step, after the step before, or waiting for it inside the kernel."""
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_k = tl.arange(0, BK)
    p_s = S + o_m[:, None] * N
    if DEPENDENT:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    b_acc = tl.zeros([BM, BK], tl.float32)
    for i_n in range(0, N, BN):
        o_n = i_n + tl.arange(0, BN)
        b_v = tl.load(V + o_n[:, None] * BK + o_k[None, :])
        b_acc = tl.dot(tl.load(p_s + o_n[None, :]), b_v, b_acc)
    o_out = o_m[:, None] * BK + o_k[None, :]
    tl.store(OUT + o_out, b_acc)
    tl.store(OUT_V + o_out, b_acc.to(OUT_V.dtype.element_ty))


@triton.jit
def local_with_halo_kernel(
    PQ, PK, OUT, N, width, CHANNELS: tl.constexpr, BC: tl.constexpr, SIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Local affinity of packed heads: ``SIDE × SIDE`` tokens and all their neighbours at once.

    The ``(SIDE + 2)²`` neighbours are padded to ``BN``.
    """
    HALO: tl.constexpr = SIDE + 2
    tiles = width // SIDE
    i_y, i_x = tl.program_id(0) // tiles * SIDE, tl.program_id(0) % tiles * SIDE
    o_t, o_s = tl.arange(0, BM), tl.arange(0, BN)
    o_i = (i_y + o_t // SIDE) * width + i_x + o_t % SIDE
    o_j = (i_y + o_s // HALO - 1) * width + i_x + o_s % HALO - 1
    o_j = tl.minimum(tl.maximum(o_j, 0), N - 1)
    b_s = affinities((), PQ, PK, o_i, o_j, CHANNELS, "tf32", False, BC, BM, BN)
    o_home = o_t // SIDE * HALO + o_t % SIDE
    for i_w in tl.static_range(9):
        near = o_s[None, :] == (o_home + i_w // 3 * HALO + i_w % 3)[:, None]
        tl.store(OUT + i_w * N + o_i, tl.sum(tl.where(near, b_s, 0.0), 1))


def trials(dtype: torch.dtype) -> dict[str, Launch]:
    """The launches by what they show."""

    def empty(*shape, kind=dtype):
        return torch.empty(shape, dtype=kind, device="meta")

    packed = {"PQ": empty(TOKENS, CHANNELS), "PK": empty(TOKENS, CHANNELS), "N": TOKENS}
    values, out = empty(TOKENS, COLUMNS), empty(TOKENS, COLUMNS, kind=torch.float32)
    found = {}
    tiles = {"BM": 128, "BN": 64, "BK": COLUMNS}
    for name, described, chunk in (
        ("keys by pointers, channels in 256 + 64", False, 256),
        ("keys by pointers, channels in 64s", False, 64),
        ("keys by TMA descriptors, channels in 64s", True, 64),
    ):
        config = Config.of(8, 3, **tiles, BC=chunk)
        arguments = {**packed, "V": values, "OUT": out, "DESCRIBED": described}
        found[f"streaming step: {name}"] = (streaming_tiles_kernel, config, arguments)
    for name, dependent in (("after the step before", False), ("programmatic dependence", True)):
        config = Config.of(8, 4, BM=128, BN=128, BK=COLUMNS)
        arguments = {"S": empty(TOKENS, TOKENS), "V": values, "OUT": out, "OUT_V": values}
        arguments |= {"N": TOKENS, "DEPENDENT": dependent}
        found[f"dense step: {name}"] = (dense_tiles_kernel, config, arguments)
    config = Config.of(4, 3, BM=64, BN=128, BC=64)
    arguments = {**packed, "OUT": out, "width": WIDTH, "SIDE": 8}
    found["local affinity: packed, 8 × 8 with halo"] = (local_with_halo_kernel, config, arguments)
    return {
        name: Launch(kernel, 1, {"CHANNELS": CHANNELS, **dict(config.blocks), **arguments}, config)
        for name, (kernel, config, arguments) in found.items()
    }


def described(name: str, one: Compiled) -> str:
    loop = one.instructions
    return (
        f"{name:56} {one.registers:3} registers, {one.shared / 1024:5.1f} KiB shared, "
        f"{one.spilled} B spilled, {loop.loop} instructions in the loop, "
        f"waits leave {', '.join(map(str, loop.waits)) or 'no copy to be waited for'}, "
        f"{loop.drains} waits for products or copies"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.harness.trials", description=__doc__)
    parser.add_argument("--target", choices=("sm_90", "sm_100"), default="sm_90")
    options = parser.parse_args()
    if interpreted():
        print("TRITON_INTERPRET is set: there is nothing to compile. Unset it.", file=sys.stderr)
        return 2
    for name, one in trials(torch.bfloat16).items():
        print(described(name, compile_for(options.target, torch.bfloat16, one)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
