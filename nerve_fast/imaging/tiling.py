"""A large plane cut into overlapping tiles, and the weights that join the tiles' results."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from nerve_fast.errors import InputError, quoted


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Tiles of one size that cover a plane, in rows and columns.

    Attributes:
        size: ``(height, width)`` of the plane.
        tile: ``(height, width)`` of a tile.
        tops, lefts: where rows and columns of tiles start.
        first, last: of the tiles, row by row, the run that this stands for; ``None``: to the end.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    first: int = 0
    last: int | None = None

    @classmethod
    def of(cls, size: tuple[int, int], tile: int, overlap: int, multiple: int) -> "Tiling":
        """The fewest tiles of one size, at most ``tile × tile``, that overlap by ``overlap``.

        Args:
            size: ``(height, width)``, multiples of ``multiple``.
            tile: the longest side of a tile, in pixels.
            overlap: the overlap of neighbouring tiles, in pixels; rounding to ``multiple`` may make
                it smaller.
            multiple: sides and starts of tiles are multiples of this.

        Raises:
            InputError: neighbouring tiles would overlap by more than half, ``tile`` is less than
                ``multiple``, or ``overlap`` is negative.
        """
        for name, value, least in (("tile", tile, multiple), ("overlap", overlap, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} is {quoted(value)}; expected {least} pixels or more")
        if 2 * overlap > tile // multiple * multiple:
            raise InputError(
                f"overlap is {quoted(overlap)} and tile {tile}; expected an overlap of at most "
                "half a tile"
            )
        (height, tops), (width, lefts) = (
            _starts(length, tile // multiple * multiple, overlap, multiple) for length in size
        )
        return cls(size, (height, width), tops, lefts)

    def __len__(self) -> int:
        return (self.in_all if self.last is None else self.last) - self.first

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over ``(top, left)`` of the tiles, row by row."""
        corners = itertools.product(self.tops, self.lefts)
        return itertools.islice(corners, self.first, self.last)

    @property
    def in_all(self) -> int:
        """Tiles of the whole plane."""
        return len(self.tops) * len(self.lefts)

    @property
    def rows(self) -> tuple[int, int]:
        """The first row of the plane that a tile of the run covers, and the one after the last."""
        if not len(self):
            return 0, 0
        columns = len(self.lefts)
        last = (self.first + len(self) - 1) // columns
        return self.tops[self.first // columns], self.tops[last] + self.tile[0]

    def part(self, index: int, parts: int) -> "Tiling":
        """One of ``parts`` runs of tiles, as equal as can be."""
        first, last = (self.in_all * number // parts for number in (index, index + 1))
        return dataclasses.replace(self, first=first, last=last)

    def in_units(self, unit: int) -> "Tiling":
        """The same tiles on a grid whose cells are ``unit × unit``."""

        def divided(values):
            return tuple(value // unit for value in values)

        size, tile, tops, lefts = map(divided, (self.size, self.tile, self.tops, self.lefts))
        return Tiling(size, tile, tops, lefts, self.first, self.last)

    def weights(self) -> tuple[Tensor, Tensor]:
        """The weights of each tile's rows and columns; at each place those of all tiles sum to 1.

        Returns:
            ``(len(tops), tile height)`` and ``(len(lefts), tile width)`` float32: a tile's weight
            at a place is the product of both. Where two tiles overlap, the weights fade linearly.
        """
        return (
            _fades(self.size[0], self.tile[0], self.tops),
            _fades(self.size[1], self.tile[1], self.lefts),
        )


def _starts(length: int, tile: int, overlap: int, multiple: int) -> tuple[int, tuple[int, ...]]:
    """The length of the tiles along one side of ``length``, and where each starts."""
    if length <= tile:
        return length, (0,)
    count = math.ceil((length - overlap) / (tile - overlap))
    shared = (length + (count - 1) * overlap) / count
    tile = min(math.ceil(shared / multiple) * multiple, tile)
    step = (length - tile) / (count - 1)
    return tile, tuple(round(i * step / multiple) * multiple for i in range(count))


def _fades(length: int, tile: int, starts: tuple[int, ...]) -> Tensor:
    """``(len(starts), tile)``: the weights along one side of ``length``."""
    place = torch.arange(tile) + 0.5
    whole = torch.zeros(length)
    fades = []
    for i, start in enumerate(starts):
        fade = torch.ones(tile)
        if i > 0:
            fade = torch.minimum(fade, place / max(starts[i - 1] + tile - start, 1))
        if i + 1 < len(starts):
            fade = torch.minimum(fade, (tile - place) / max(start + tile - starts[i + 1], 1))
        fades.append(fade)
        whole[start : start + tile] += fade
    return torch.stack(
        [fade / whole[start : start + tile] for fade, start in zip(fades, starts, strict=True)]
    )
