"""Starting kernels: on which target, in which precision, with which blocks."""

import contextlib
import dataclasses
import functools
import subprocess
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Config:
    """Block sizes of a kernel, and the warps and pipeline stages it is compiled for."""

    blocks: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, num_warps: int, num_stages: int, **blocks: int) -> "Config":
        return cls(tuple(blocks.items()), num_warps, num_stages)

    def __getitem__(self, block: str) -> int:
        return dict(self.blocks)[block]


@dataclasses.dataclass(frozen=True)
class Launch:
    """One start of a kernel, as :func:`recorded` keeps it."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    config: Config


_recording: list[Launch] | None = None
_target: str | None = None

SHARED_MEMORY = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
"""Bytes of shared memory a program may take on each target that configurations are made for."""


MAX_RADIUS = 4
"""Of the window: its weights are kept in registers when they are normalised."""


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU."""
    return triton.knobs.runtime.interpret


def target_of(device: torch.device) -> str:
    """The key of :data:`SHARED_MEMORY` whose configurations suit ``device``."""
    if _target is not None:
        return _target
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    # 12.x, Blackwell for desktops, has the matrix instructions of 8.x.
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def multiprocessors(device: torch.device) -> int:
    """Return how many programs run side by side; an H200's number where there is no GPU."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def precision(x: Tensor) -> str:
    """``input_precision`` of float32 products for inputs like ``x``.

    tf32 where inputs have 16 bits, which it holds exactly, or the caller has allowed it; otherwise
    float32 in three products of tf32, and on AMD as it is.
    """
    if target_of(x.device) == "gfx942":
        return "ieee"
    exact = x.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return "tf32x3" if exact else "tf32"


@triton.jit
def _trivial_kernel(OUT):
    tl.store(OUT, 1)


@functools.cache
def obstacle(device: torch.device) -> str | None:
    """Why no kernel can be started on ``device``, found by starting one; once a process.

    Triton compiles a part of each launch with the system's compiler, which may not be there.
    """
    out = torch.zeros(1, dtype=torch.int32, device=device)
    try:
        with torch.cuda.device(device):
            _trivial_kernel[(1,)](out)
    except (RuntimeError, OSError, subprocess.SubprocessError, triton.TritonError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        return f"cannot start kernels here ({first_line})"
    return None


def fp8_of(device: str | torch.device) -> torch.dtype | None:
    """The float8 with a 4-bit exponent that ``device`` converts in hardware, if it has one."""
    device = torch.device(device)
    target = target_of(device)
    if target == "gfx942":
        return torch.float8_e4m3fnuz
    if target == "sm_80" and (
        device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)
    ):
        return None
    return torch.float8_e4m3fn


def recording() -> bool:
    """Whether launches are collected instead of started."""
    return _recording is not None


@contextlib.contextmanager
def recorded(target: str) -> Iterator[list[Launch]]:
    """Within the block nothing is started: launches are collected, with the blocks of ``target``.

    Tensors may then lie on the device ``meta``: what would be compiled is known without a GPU.
    """
    global _recording, _target
    _recording, _target = [], target
    try:
        yield _recording
    finally:
        _recording = _target = None


def launch(kernel, programs: int, config: Config, **arguments) -> None:
    """Start ``kernel``.

    Args:
        kernel: a Triton kernel.
        programs: how many.
        config: its blocks, which are arguments too, warps and stages.
        arguments: all others, by name.
    """
    blocks = dict(config.blocks)
    if _recording is not None:
        _recording.append(Launch(kernel, programs, {**arguments, **blocks}, config))
        return
    device = next(x.device for x in arguments.values() if isinstance(x, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](
            **arguments,
            **blocks,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,
        )
