"""Tiles: sizes that fit a device's cache, a dimension cut into spans, and memory to write to."""

import math
from collections.abc import Iterator

from torch import Tensor

CPU_TILE_BYTES = 2 << 20
"""Passes over a tile of this size stay in a CPU's cache, and its products are large enough."""

GPU_TILE_BYTES = 256 << 20
"""On a GPU the launches cost more than the memory, so tiles are large."""


def spans(length: int, step: int) -> Iterator[slice]:
    """``length`` cut into slices of ``step``; the last slice may be shorter."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


class Scratch:
    """Memory that one tile after another is written to: new memory costs more than arithmetic.

    Args:
        like: on what device, and in which dtype.
        gradient: whether one is wanted: then each tile is a new tensor, as operations give it.
    """

    def __init__(self, like: Tensor, gradient: bool):
        self.like, self.gradient = like, gradient
        self._memory = like.new_empty(0)

    def tile(self, *shape: int) -> Tensor | None:
        """A contiguous tensor, uninitialised; what an ``out=`` takes."""
        if self.gradient:
            return None
        size = math.prod(shape)
        if len(self._memory) < size:
            self._memory = self.like.new_empty(size)
        return self._memory[:size].view(shape)
