"""``python -m nerve_fast.kernels.aot``: compile every kernel for GPUs that are not there.

Each public operation and route is called on tensors without storage for each target and dtype, what
it would start is collected, and compiled as it would be there. Printed for each: registers a
thread, shared memory, bytes spilled, the matrix instructions, and whether loads are 16 bytes wide.
"""

import argparse
import dataclasses
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nerve_fast.kernels import affinity, configs, entropy, walk
from nerve_fast.kernels.launch import (
    SHARED_MEMORY,
    Config,
    Launch,
    fp8_of,
    interpreted,
    recorded,
)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
TYPE_NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e4m3fnuz: "fp8e4b8",
}
SHAPES = ((5, 64, 21), (8, 40, 171), (20, 64, 1), (8, 160, 21))
"""Heads, head dimension, labels: Stable Diffusion 2 and 1 at their finest layers and further down,
and data sets from one label to 171."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One kernel as compiled for one target.

    Attributes:
        registers: a thread; ``spilled``: bytes of stack a thread; ``shared``: bytes a program.
        matrix: the matrix instructions it holds, such as ``wgmma``.
        wide_loads: whether it loads 16 bytes at once.
    """

    target: str
    dtype: str
    kernel: str
    variant: str
    warps: int
    stages: int
    registers: int
    shared: int
    spilled: int
    matrix: str
    wide_loads: bool

    @property
    def unfit(self) -> bool:
        """Whether it cannot start, or is not what is wanted on the target that is tuned for."""
        too_large = self.shared > SHARED_MEMORY[self.target]
        return too_large or (self.target == "sm_90" and self.spilled > 0)

    def __str__(self) -> str:
        return (
            f"{self.target:7} {self.dtype:9} {self.kernel:24} {self.warps:2} warps {self.stages} "
            f"stages {self.registers:4} registers {self.shared:7} B shared {self.spilled:4} B "
            f"spilled {self.matrix or '-':8} {'16-byte loads' if self.wide_loads else '-':13} "
            f"{self.variant}"
        )


def launches(target: str, dtype: torch.dtype, quick: bool = False) -> list[Launch]:
    """All different kernels that the operations would start on ``target`` for ``dtype``.

    Args:
        quick: only Stable Diffusion 2's finest layer with 21 labels, and first configurations.
    """
    found = {}
    with recorded(target) as started:
        _operations(*SHAPES[0], dtype, ("softmax", "relu", "l1", "shift"))
        if not quick:
            for shape in SHAPES[1:]:
                _operations(*shape, dtype, ("softmax", "l1"))
            # Nothing divisible by anything: other loads, and sizes of 1 that become constants.
            _operations(1, 7, 15, dtype, ("softmax", "shift"), grid=(1, 17))
            for name in configs.CANDIDATES:
                for config in _all_candidates(name, target, dtype):
                    with configs.forcing(name, config):
                        _operations(*SHAPES[0], dtype, ("softmax", "l1"))
    for one in started:
        found.setdefault((one.kernel.__name__, repr(_signature(one)), one.config), one)
    return list(found.values())


def _all_candidates(name: str, target: str, dtype: torch.dtype) -> tuple[Config, ...]:
    """Those that fit Stable Diffusion 2's finest layer."""
    heads, head_dim, _ = SHAPES[0]
    shape = {
        "head_entropy": {"kept": head_dim},
        "cosine_affinity": {"loaded": head_dim},
        "local_affinity": {"loaded": head_dim},
        "streaming_step": {"kept": heads * head_dim, "labels": 32},
        "row_statistic": {"kept": heads * head_dim},
    }.get(name, {"labels": 32})
    return configs.candidates(name, torch.empty(0, dtype=dtype, device="meta"), **shape)


def _operations(
    heads: int,
    head_dim: int,
    labels: int,
    dtype: torch.dtype,
    normalizations: Sequence[str],
    grid: tuple[int, int] = (64, 64),
) -> None:
    """Call every operation and route on tensors without storage."""
    tokens = grid[0] * grid[1]
    q, k = (torch.empty(heads, tokens, head_dim, dtype=dtype, device="meta") for _ in range(2))
    G = torch.empty(tokens, labels, device="meta")
    weights = torch.empty(heads, device="meta")
    affinity.cosine_affinity(q, k, weights)
    affinity.cosine_affinity(q, k)
    entropy.head_entropy(q, k)
    for radius in (1, 4):
        affinity.local_affinity(q, k, grid, weights, radius, 1.0)
    for normalization in normalizations:
        config = SimpleNamespace(
            alpha=0.9,
            beta=0.5,
            steps=2,
            radius=1,
            self_affinity=1.0,
            sharpness=1.0,
            normalization=normalization,
            temperature=0.05,
            global_stride=1,
        )
        stored = {"route": "dense", "stored_rows": tokens}
        ways = [{"route": "streaming"}, stored]
        if normalization in ("l1", "shift"):
            ways.append({"route": "factorized"})
        elif dtype == torch.bfloat16 and fp8_of("meta") is not None:
            ways.append({**stored, "stored_dtype": fp8_of("meta")})
        for way in ways:
            walk.random_walk(q, k, G, grid, config, None, **way)
        if normalization == "softmax":
            config.beta, config.radius = 0.0, 4
            walk.random_walk(q, k, G, grid, config, None, route="streaming")


def _signature(one: Launch) -> tuple[dict, dict, dict]:
    """Types, constants and alignments of a launch's arguments, as the compiler takes them."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(one.kernel.params):
        value = one.arguments[parameter.name]
        if parameter.is_constexpr or value is None or value is True or value is False:
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = f"*{TYPE_NAMES[value.dtype]}"
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            if value == 1:
                signature[parameter.name] = "constexpr"
                constants[(i,)] = 1
                continue
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    return signature, constants, attributes


def compile_for(target: str, dtype: str, one: Launch) -> Compiled:
    """Compile a launch and read what became of it."""
    kernel = triton.compile(
        ASTSource(one.kernel, *_signature(one)),
        target=TARGETS[target],
        options={
            "num_warps": one.config.num_warps,
            "num_stages": one.config.num_stages,
            "enable_fp_fusion": True,
        },
    )
    if "ptx" in kernel.asm:
        text = kernel.asm["ptx"]
        registers, spilled = _cubin_usage(kernel.asm["cubin"])
        matrix = {"wgmma": r"wgmma\.mma_async", "tcgen05": r"tcgen05\.mma", "mma": r"mma\.sync"}
        wide = r"cp\.async\.\w+\.shared\.global[^;]*, 0x10|ld\.global[\w.:]*\.(v4\.b32|v2\.b64)"
    else:
        text = kernel.asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count:\s*(\d+)", text)[1])
        spilled = 4 * int(re.search(r"\.vgpr_spill_count:\s*(\d+)", text)[1])
        matrix = {"mfma": r"v_mfma_"}
        wide = r"(global|buffer)_load_dwordx4"
    named = {
        name: value
        for name, value in one.arguments.items()
        if isinstance(value, (bool, str)) or name in ("RADIUS", "CHANNELS", "CHUNKS", "BK")
    }
    return Compiled(
        target=target,
        dtype=dtype,
        kernel=one.kernel.__name__.removesuffix("_kernel"),
        variant=" ".join(
            f"{name}={value}" for name, value in {**dict(one.config.blocks), **named}.items()
        ),
        warps=one.config.num_warps,
        stages=one.config.num_stages,
        registers=registers,
        shared=kernel.metadata.shared,
        spilled=spilled,
        matrix=" ".join(name for name, form in matrix.items() if re.search(form, text)),
        wide_loads=re.search(wide, text) is not None,
    )


def _cubin_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes a thread, from the tool that Triton brings."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "--dump-resource-usage", str(path)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"REG:(\d+)", report)[1]), int(re.search(r"STACK:(\d+)", report)[1])


def _compile_share(share) -> list[Compiled | str]:
    target, dtype, quick, kernels, part, parts = share
    found = []
    for one in launches(target, DTYPES[dtype], quick)[part::parts]:
        name = one.kernel.__name__.removesuffix("_kernel")
        if kernels and name not in kernels:
            continue
        try:
            found.append(compile_for(target, dtype, one))
        except Exception as error:  # whatever a compiler throws is this tool's finding
            found.append(f"{target} {dtype} {name}: {type(error).__name__}: {error}")
    return found


def compile_all(
    targets: Sequence[str],
    dtypes: Sequence[str],
    quick: bool = False,
    kernels: Sequence[str] = (),
    processes: int | None = None,
) -> Iterator[Compiled | str]:
    """Compile all kernels; yields a :class:`Compiled`, or what went wrong as text."""
    processes = processes or os.cpu_count()
    shares = [
        (target, dtype, quick, kernels, part, processes)
        for target, dtype in itertools.product(targets, dtypes)
        for part in range(processes)
    ]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for found in pool.imap(_compile_share, shares):
            yield from found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nerve_fast.kernels.aot", description=__doc__)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--kernel", nargs="+", default=(), help="names, such as streaming_step")
    parser.add_argument("--quick", action="store_true", help="one shape, first configurations")
    options = parser.parse_args()
    if interpreted():
        print("TRITON_INTERPRET is set: there is nothing to compile. Unset it.", file=sys.stderr)
        return 2
    failed = 0
    for one in compile_all(options.target, options.dtype, options.quick, options.kernel):
        failed += isinstance(one, str) or one.unfit
        print(one, flush=True)
    print(f"{failed} failed, took more shared memory than there is, or spilled on sm_90")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
