"""Compiling one launch for a GPU that is not there, and reading what became of it."""

import dataclasses
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nerve_fast.kernels.instructions import Instructions, of_amd, of_nvidia
from nerve_fast.kernels.launch import SHARED_MEMORY, Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPE_NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e4m3fnuz: "fp8e4b8",
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One kernel as compiled for one target.

    Attributes:
        registers: a thread; ``spilled``: bytes of stack a thread; ``shared``: bytes a program.
        matrix: the kinds of matrix instructions it holds, such as ``wgmma``.
        instructions: what they say in detail.
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
    instructions: Instructions

    @property
    def wide_loads(self) -> bool:
        """Whether it loads 16 bytes at once."""
        return self.instructions.loads["16"] > 0

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


def signature(one: Launch) -> tuple[dict, dict, dict]:
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
        ASTSource(one.kernel, *signature(one)),
        target=TARGETS[target],
        options={
            "num_warps": one.config.num_warps,
            "num_stages": one.config.num_stages,
            "enable_fp_fusion": True,
        },
    )
    if "ptx" in kernel.asm:
        text = kernel.asm["ptx"]
        usage, sass = _read_cubin(kernel.asm["cubin"])
        registers, spilled = (int(re.search(rf"{x}:(\d+)", usage)[1]) for x in ("REG", "STACK"))
        instructions = of_nvidia(sass, text)
        matrix = {"wgmma": r"wgmma\.mma_async", "tcgen05": r"tcgen05\.mma", "mma": r"mma\.sync"}
    else:
        text = kernel.asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count:\s*(\d+)", text)[1])
        spilled = 4 * int(re.search(r"\.vgpr_spill_count:\s*(\d+)", text)[1])
        instructions = of_amd(text)
        matrix = {"mfma": r"v_mfma_"}
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
        instructions=instructions,
    )


def _read_cubin(cubin: bytes) -> tuple[str, str]:
    """What the tools that Triton brings say of its resources, and its disassembly."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, sass = (
            subprocess.run([*command, str(path)], capture_output=True, text=True, check=True).stdout
            for command in (
                (triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage"),
                (triton.knobs.nvidia.nvdisasm.path, "-c"),
            )
        )
    return usage, sass
