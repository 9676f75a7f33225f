"""The precision in which everything is computed, whatever the inputs' dtype."""

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """float32, or float64 where the input is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
