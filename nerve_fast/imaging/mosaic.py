"""Overlapping windows' maps, blended as they come: rows in the making are all that is held."""

import math

import torch
from torch import Tensor

from nerve_fast.imaging.resampling import likeliest


class Mosaic:
    """A plane of tokens, filled by windows row by row and read from the top.

    Args:
        labels: ``K``.
        size: ``(h, w)`` of the plane, in tokens.
    """

    def __init__(self, labels: int, size: tuple[int, int]):
        self.size = size
        self._first = 0
        self._sums = torch.zeros(labels, 0, size[1])
        self._weights = torch.zeros(0, size[1])

    def add(self, corner: tuple[int, int], maps: Tensor, weights: Tensor) -> None:
        """Add a window.

        Args:
            corner: ``(top, left)`` in tokens; rows that were dropped are no place for it.
            maps: ``(K, h, w)`` float32.
            weights: ``(h, w)``; where windows overlap the maps are their weighted mean.
        """
        (top, left), (height, width) = corner, weights.shape
        self._reach(top + height)
        rows = slice(top - self._first, top - self._first + height)
        self._sums[:, rows, left : left + width] += maps * weights
        self._weights[rows, left : left + width] += weights

    def labels(
        self,
        corner: tuple[int, int],
        size: tuple[int, int],
        pixels: int,
        least: Tensor | None = None,
        instead: int = -1,
    ) -> Tensor:
        """The likeliest label of the pixels of a block, as if all of the plane were resampled.

        Args:
            corner: ``(top, left)`` in pixels.
            size: ``(height, width)`` in pixels.
            pixels: along a side of a token.
            least, instead: as for :func:`~nerve_fast.imaging.resampling.likeliest`.

        Returns:
            ``(height, width)`` int64.
        """
        # A token more on each side, whose values reach into the block.
        starts = [max(start // pixels - 1, 0) for start in corner]
        ends = [
            min(math.ceil((start + side) / pixels) + 1, length)
            for start, side, length in zip(corner, size, self.size, strict=True)
        ]
        self._reach(ends[0])
        rows = slice(starts[0] - self._first, ends[0] - self._first)
        columns = slice(starts[1], ends[1])
        total = self._weights[rows, columns]
        # What no window has seen has no label.
        maps = self._sums[:, rows, columns] / total.where(total > 0, 1)
        whole = (maps.shape[1] * pixels, maps.shape[2] * pixels)
        found = likeliest(maps, whole, least, instead)
        top, left = (start - first * pixels for start, first in zip(corner, starts, strict=True))
        return found[top : top + size[0], left : left + size[1]]

    def needed(self, end: int, pixels: int) -> int:
        """The row of tokens before which all must be there for pixels above row ``end``."""
        return min(math.ceil(end / pixels) + 1, self.size[0])

    def drop(self, row: int, pixels: int) -> None:
        """Forget what pixels from a row on do not need."""
        first = max(row // pixels - 1, self._first)
        gone = min(first - self._first, self._weights.shape[0])
        self._sums = self._sums[:, gone:].clone()
        self._weights = self._weights[gone:].clone()
        self._first += gone

    def _reach(self, end: int) -> None:
        missing = end - self._first - self._weights.shape[0]
        if missing > 0:
            count, width = self._sums.shape[0], self.size[1]
            self._sums = torch.cat([self._sums, torch.zeros(count, missing, width)], dim=1)
            self._weights = torch.cat([self._weights, torch.zeros(missing, width)])
