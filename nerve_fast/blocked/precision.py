"""In which dtype large products run."""

import functools

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
    return torch.bfloat16 if allowed and cpu_has_bfloat16() else torch.float32


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AMX or AVX512-BF16)."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
