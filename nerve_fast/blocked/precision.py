"""In which dtype large products run."""

import functools
import platform
from pathlib import Path

import torch


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of the large products for inputs of ``dtype``; sums are kept in float32 or better.

    16 bits only where the caller allows them and the hardware gains by them: inputs of that dtype,
    or, on a CPU, float32 inputs under ``torch.set_float32_matmul_precision("medium")``.
    """
    if dtype == torch.float64:
        return torch.float64
    if device.type != "cpu":
        return dtype
    allowed = dtype == torch.bfloat16 or (
        dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium"
    )
    return torch.bfloat16 if allowed and bfloat16_pays() else torch.float32


@functools.cache
def bfloat16_pays() -> bool:
    """Whether products in bfloat16 are faster than in float32 on this CPU: the hardware's own say.

    AMX and AMD's AVX512-BF16 have at least twice the rate of float32. Intel's AVX512-BF16 without
    AMX, as some virtual machines show it, has the same, and the reordering of operands makes
    products slower. It is not timed here, as a busy moment would then decide what is computed, and
    processes that share a walk might decide differently; benchmarks print both rates.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and "AuthenticAMD" in _vendor()


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16, fast ones or not."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def _vendor() -> str:
    """What the CPU calls itself; on Windows Python says so, elsewhere Linux does."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
