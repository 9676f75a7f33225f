"""In which dtype large products run."""

import functools
import time

import torch
from torch import Tensor

TRIAL_SIZE, TRIALS = 512, 7
"""Of the products that are timed: some milliseconds each, the fastest of so many."""

WORTHWHILE = 0.75
"""The share of the time in float32 that bfloat16 may take: between all that were measured."""


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
    """Whether products in bfloat16 are faster than in float32 on this CPU.

    Instructions for them do not say so: AMX and AMD's AVX512-BF16 have at least twice the rate of
    float32, while Intel's AVX512-BF16 without AMX has the same, and the reordering of operands
    makes it slower. Where there are any, both are timed, once a process.
    """
    if not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return False
    precision = torch.get_float32_matmul_precision()
    # Under "medium" float32 is multiplied in bfloat16 as well.
    torch.set_float32_matmul_precision("highest")
    try:
        matrix = torch.ones(TRIAL_SIZE, TRIAL_SIZE)
        seconds = {
            dtype: min(_seconds(matrix.to(dtype)) for _ in range(TRIALS))
            for dtype in (torch.float32, torch.bfloat16)
        }
    finally:
        torch.set_float32_matmul_precision(precision)
    return seconds[torch.bfloat16] < WORTHWHILE * seconds[torch.float32]


def _seconds(matrix: Tensor) -> float:
    start = time.perf_counter()
    matrix @ matrix
    return time.perf_counter() - start
