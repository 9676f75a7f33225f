"""What says which tokens of an image belong together: the interface, and what its makers share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from nerve_fast.errors import InputError
from nerve_fast.imaging.tiling import Tiling


@dataclasses.dataclass(frozen=True, eq=False)
class GraphFeatures:
    """Queries and keys of images, of which the graph is made.

    Attributes:
        q, k: ``(B, H, N, D)``, any floating dtype, ``N = h · w`` in row-major order.
        grid: ``(h, w)`` of the tokens.
    """

    q: Tensor
    k: Tensor
    grid: tuple[int, int]


class AffinitySource(Protocol):
    """Gives the queries and keys of images; the diffusion model and the DINOs are two of them.

    Any object with these members serves, without registration. Where it has ``heads`` and
    ``head_dim`` too, plans are made without asking it; else it is run once on a blank image.

    Attributes:
        device, dtype: where and in what the network computes.
        unit: pixels of a token along a side.
        multiple: sides of the images that it sees are multiples of this number of pixels.
        native_size: side of the images that it was trained on, in pixels.
        identity: whatever tells its results from those of other sources: the kind of the network, a
            digest of its weights, its settings. Caches and records are keyed by it.
    """

    unit: int
    multiple: int
    native_size: int

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def identity(self) -> str: ...

    def queries_and_keys(
        self,
        images: Sequence[Image.Image],
        size: tuple[int, int],
        generators: Sequence[torch.Generator],
        *,
        tiling: Tiling | None = None,
        batch_size: int = 1,
        dtype: torch.dtype | None = None,
        advance: Callable[[int], None] = lambda tiles: None,
    ) -> GraphFeatures:
        """Queries and keys of whole images.

        Args:
            images: ``B`` of them, RGB, of any sizes.
            size: ``(width, height)`` in pixels at which each is seen, multiples of
                :attr:`multiple`.
            generators: one an image, for sources that draw noise.
            tiling: of ``(height, width)`` pixels, in multiples of :attr:`multiple`; ``None`` shows
                whole images. :func:`tiled_features` does it for any network. Of a run of tiles the
                result is that of the rows of the grid which they cover, their weights as in all.
            batch_size: tiles that go through the network at a time.
            dtype: of the result; ``None`` is the network's.
            advance: called with the number of tiles just done.
        """
        ...

    def tile_memory(self, tile: tuple[int, int]) -> int:
        """Bytes that one tile of ``(height, width)`` pixels takes at most on its way through."""
        ...


def heads_of(source: AffinitySource) -> tuple[int, int]:
    """``(H, D)``: the number of heads and their channels.

    Sources are asked; one that does not say is run on a blank image of the smallest size.
    """
    heads, head_dim = (getattr(source, name, None) for name in ("heads", "head_dim"))
    if heads is not None and head_dim is not None:
        return heads, head_dim
    side = source.multiple
    blank = Image.new("RGB", (side, side))
    generator = torch.Generator().manual_seed(0)
    q = source.queries_and_keys([blank], (side, side), [generator]).q
    return q.shape[1], q.shape[3]


def feature_dtype(source: AffinitySource) -> torch.dtype:
    """What queries and keys are kept in: the network's dtype, on a CPU at least float32.

    There the walk in bfloat16 would change as many labels as the networks in bfloat16 do.
    """
    narrow = source.device.type == "cpu" and source.dtype.itemsize < torch.float32.itemsize
    return torch.float32 if narrow else source.dtype


def check_finite(features: GraphFeatures) -> None:
    """Refuse queries and keys that overflowed; waits for the device.

    Raises:
        InputError: a value is not finite.
    """
    for projection in (features.q, features.k):
        if not torch.isfinite(projection).all():
            raise InputError(
                f"the graph's network gave values that are not finite in {projection.dtype}: take "
                "another dtype (torch.bfloat16 or torch.float32), or check the model's weights"
            )


def tiled_features(
    images: Sequence[Image.Image],
    size: tuple[int, int],
    project: Callable[[list[tuple[int, tuple[int, int], Image.Image]]], tuple[Tensor, Tensor]],
    *,
    unit: int,
    tiling: Tiling | None,
    batch_size: int,
    dtype: torch.dtype | None,
    advance: Callable[[int], None],
) -> GraphFeatures:
    """Queries and keys of whole images from those of their tiles, which fade into one another.

    Args:
        images: ``B`` of them, RGB, of any sizes.
        size: ``(width, height)`` in pixels that each is resized to (bicubic).
        project: given a batch of tiles, each with the index of its image, its ``(top, left)`` in
            pixels and its pixels, gives their queries and keys, ``(b, n, H, D)`` each.
        unit: pixels of a token along a side.
        tiling, batch_size, dtype, advance: as :meth:`AffinitySource.queries_and_keys` has them.
    """
    if tiling is None:
        tiling = Tiling(size[::-1], size[::-1], (0,), (0,))
    images = [image.resize(size, Image.Resampling.BICUBIC) for image in images]
    joined = None
    corners = list(tiling)
    jobs = [(image, tile) for image in range(len(images)) for tile in range(len(corners))]
    for first in range(0, len(jobs), batch_size):
        batch = jobs[first : first + batch_size]
        tiles = []
        for image, tile in batch:
            top, left = corners[tile]
            box = (left, top, left + tiling.tile[1], top + tiling.tile[0])
            tiles.append((image, (top, left), images[image].crop(box)))
        projections = project(tiles)
        joined = joined or _Joined(len(images), tiling, unit, projections, dtype)
        for number, (image, tile) in enumerate(batch):
            joined.add(image, tile, [part[number] for part in projections])
        advance(len(batch))
    if joined is None:
        raise InputError("images is empty; expected one image or more")
    return joined.features()


class _Joined:
    """Queries and keys of whole images, from those of their tiles.

    Args:
        images: how many.
        tiling: in pixels.
        unit: pixels of a token, along a side.
        projections: queries and keys of some tiles, ``(b, n, H, D)`` each.
        dtype: of the result; ``None`` is theirs.
    """

    def __init__(
        self,
        images: int,
        tiling: Tiling,
        unit: int,
        projections: tuple[Tensor, Tensor],
        dtype: torch.dtype | None,
    ):
        self.heads, head_dim = projections[0].shape[2:]
        self.tiling = tiling.in_units(unit)
        self.corners = list(self.tiling)
        self.top, bottom = self.tiling.rows
        device = projections[0].device
        self.fades = [fades.to(device) for fades in self.tiling.weights()]
        self.grid = (bottom - self.top, self.tiling.size[1])
        # Heads last, as the graph stage packs them; 0 is where nothing has been added yet.
        self.whole = [
            torch.zeros(
                images, *self.grid, self.heads * head_dim, dtype=dtype or part.dtype, device=device
            )
            for part in projections
        ]

    def add(self, image: int, tile: int, projections: Sequence[Tensor]) -> None:
        """One tile of one image, ``(n, H, D)`` each."""
        y, x = self.corners[tile]
        h, w = self.tiling.tile
        rows, columns = self.fades
        row, column = divmod(self.tiling.first + tile, len(self.tiling.lefts))
        fade = (rows[row][:, None] * columns[column])[..., None]
        for whole, part in zip(self.whole, projections, strict=True):
            part = part.flatten(1).unflatten(0, (h, w))
            place = whole[image, y - self.top : y - self.top + h, x : x + w]
            place.copy_(part) if self.tiling.in_all == 1 else place.add_(part * fade)

    def features(self) -> GraphFeatures:
        q, k = (
            whole.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for whole in self.whole
        )
        return GraphFeatures(q, k, self.grid)
