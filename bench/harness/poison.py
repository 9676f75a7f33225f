"""Memory that nobody has written is NaN."""

import contextlib
import math
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Within the block ``Tensor.new_empty``, from which kernels write, gives NaN."""
    new_empty = torch.Tensor.new_empty

    def poison(self, *shape, **options):
        out = new_empty(self, *shape, **options)
        if not out.is_floating_point():
            return out.fill_(77)
        if out.dtype.itemsize == 1:
            out.view(torch.uint8).fill_(0x7F)
            return out
        return out.fill_(math.nan)

    torch.Tensor.new_empty = poison
    try:
        yield
    finally:
        torch.Tensor.new_empty = new_empty
