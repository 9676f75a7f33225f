"""The sizes of tiles that fit a device's cache, and the cutting of a dimension into spans."""

from collections.abc import Iterator

CPU_TILE_BYTES = 2 << 20
"""Passes over a tile of this size stay in a CPU's cache, and its products are large enough."""

GPU_TILE_BYTES = 256 << 20
"""On a GPU the launches cost more than the memory, so tiles are large."""


def spans(length: int, step: int) -> Iterator[slice]:
    """``length`` cut into slices of ``step``; the last slice may be shorter."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
