"""Memory that nobody has written is NaN, so that an element left out by a kernel is seen."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Within the block ``Tensor.new_empty`` and ``torch.empty_like`` give NaN.

    Integers are 77, and float8 has the bits of its NaN.
    """
    new_empty, empty_like = Tensor.new_empty, torch.empty_like

    def poison(out: Tensor) -> Tensor:
        if not out.is_floating_point():
            return out.fill_(77)
        if out.dtype.itemsize == 1:
            out.view(torch.uint8).fill_(0x7F)
            return out
        return out.fill_(math.nan)

    Tensor.new_empty = lambda *given, **options: poison(new_empty(*given, **options))
    torch.empty_like = lambda *given, **options: poison(empty_like(*given, **options))
    try:
        yield
    finally:
        Tensor.new_empty, torch.empty_like = new_empty, empty_like
