"""The four stages from images to labels: prior, graph, walk, pixels.

This is the only chain: the pipeline, evaluations, ablations, the demo and the benchmarks call it,
so that what is measured is what ships. The third stage is :func:`nerve_fast.refiners.walk.walk`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.profiler import record_function

from nerve_fast.backbones.source import (
    AffinitySource,
    GraphFeatures,
    check_finite,
    feature_dtype,
    heads_of,
)
from nerve_fast.errors import InputError
from nerve_fast.imaging.images import model_size
from nerve_fast.imaging.resampling import likeliest
from nerve_fast.imaging.tiling import Tiling
from nerve_fast.pipeline.settings import check_count
from nerve_fast.priors import Prior
from nerve_fast.priors.patchwise import check_finite as check_prior
from nerve_fast.priors.seeds import Seeds
from nerve_fast.refiners.walk import walk
from nerve_fast.shares import Share

__all__ = [
    "GraphView",
    "among",
    "carried_most",
    "graph_of",
    "graph_view",
    "networks",
    "prior_of",
    "prior_on_tokens",
    "shared_graph_of",
    "shared_prior_of",
    "to_labels",
    "walk",
]


LEAST_PROBABILITY = 1e-30
"""Of a label at a place, where some of many are taken: what is made to sum to 1 must not be 0."""


@dataclasses.dataclass(frozen=True)
class GraphView:
    """How the graph's network sees an image.

    Attributes:
        size: ``(width, height)`` in pixels that the image is resized to.
        tiling: of it, in pixels.
        grid: ``(h, w)`` of the tokens.
    """

    size: tuple[int, int]
    tiling: Tiling
    grid: tuple[int, int]


def graph_view(
    source: AffinitySource,
    image_size: tuple[int, int],
    processing_resolution: int | None = None,
    *,
    tile: int | None = None,
    overlap: int | None = None,
) -> GraphView:
    """How ``source`` sees images of ``image_size = (width, height)`` pixels.

    Args:
        processing_resolution: short side in pixels; ``None`` is the size the network was trained
            at, 0 the image's own.
        tile, overlap: in pixels; ``None`` are 1.5 times the network's own size, and a sixth of it.

    Raises:
        InputError: tiles cannot be as they were asked for.
        TypeError: ``tile`` or ``overlap`` is not a whole number.
    """
    check_count("tile", tile, 1)
    check_count("overlap", overlap, 0)
    short_side = source.native_size if processing_resolution is None else processing_resolution
    size = model_size(image_size, short_side or None, source.multiple)
    tile = source.native_size * 3 // 2 if tile is None else tile
    overlap = tile // 6 if overlap is None else overlap
    tiling = Tiling.of(size[::-1], tile, overlap, source.multiple)
    return GraphView(size, tiling, (size[1] // source.unit, size[0] // source.unit))


def prior_of(
    prior: Prior,
    images: Sequence[Image.Image],
    classes: Sequence[Sequence[str]],
    view: Any,
    advance: Callable[[int], None] = lambda windows: None,
) -> Tensor:
    """Stage 1: what each place looks like, ``(B, K, h', w')`` on the prior's own grid."""
    with record_function("nerve_fast: prior"):
        return prior(images, classes, view, advance)


def shared_prior_of(
    prior: Prior,
    images: Sequence[Image.Image],
    classes: Sequence[Sequence[str]],
    view: Any,
    share: Share,
    advance: Callable[[int], None],
) -> Tensor:
    """Stage 1 by several processes, each of which sees a part; all have the whole result."""
    with record_function("nerve_fast: prior"):
        return prior.shared(images, classes, view, share, advance)


def graph_of(
    source: AffinitySource,
    images: Sequence[Image.Image],
    view: GraphView,
    generators: Sequence[torch.Generator],
    *,
    batch_size: int = 1,
    dtype: torch.dtype | None = None,
    advance: Callable[[int], None] = lambda tiles: None,
) -> GraphFeatures:
    """Stage 2: which tokens belong together, ``q, k (B, H, N, D)``.

    Raises:
        InputError: the network gave values that are not finite.
    """
    features = source.queries_and_keys(
        images,
        view.size,
        generators,
        tiling=view.tiling,
        batch_size=batch_size,
        dtype=feature_dtype(source) if dtype is None else dtype,
        advance=advance,
    )
    if features.q.device.type == "cuda":
        torch.cuda.synchronize(features.q.device)
    check_finite(features)
    return features


def shared_graph_of(
    source: AffinitySource,
    image: Image.Image,
    view: GraphView,
    generator: torch.Generator,
    share: Share,
    *,
    batch_size: int,
    dtype: torch.dtype,
    advance: Callable[[int], None],
) -> GraphFeatures:
    """Stage 2 by several processes: each sees a run of the tiles, and has its rows of the result.

    Raises:
        InputError: the network of one of them gave values that are not finite; on all of them.
    """
    width = view.grid[1]
    parts = [view.tiling.part(index, share.processes) for index in range(share.processes)]
    spans = [part.in_units(source.unit).rows for part in parts]
    mine = dataclasses.replace(view, tiling=parts[share.index])
    top, bottom = spans[share.index]

    def see():
        if not len(mine.tiling):
            heads, head_dim = heads_of(source)
            none = torch.empty(1, heads, 0, head_dim, dtype=dtype, device=source.device)
            return GraphFeatures(none, none, (0, width))
        found = graph_of(
            source, [image], mine, [generator], batch_size=batch_size, dtype=dtype, advance=advance
        )
        if found.grid != (bottom - top, width):
            raise InputError(
                f"the graph's source gave a grid of {found.grid} for a run of tiles; expected "
                f"{(bottom - top, width)}, the rows that they cover, as tiled_features does"
            )
        return found

    found = share.agreed(see)
    heads = found.q.shape[1]
    tokens = [(first * width, last * width) for first, last in spans]
    q, k = (
        share.joined(x[0].transpose(0, 1).flatten(1), tokens)
        .unflatten(1, (heads, -1))
        .transpose(0, 1)[None]
        for x in (found.q, found.k)
    )
    return GraphFeatures(q, k, share.own_grid)


def networks(
    look: Callable[[], Any], see: Callable[[], GraphFeatures], device: torch.device
) -> tuple[Any, GraphFeatures]:
    """Stages 1 and 2, on a GPU side by side: neither waits for the other."""
    with _beside(device):
        looks = look()
    graph = see()
    if isinstance(looks, Tensor):
        check_prior(looks)
    return looks, graph


def carried_most(maps: Tensor, count: int, always: Sequence[int]) -> Tensor:
    """The labels that would carry most of an image by its prior alone.

    They are those that are likeliest at most places; of labels that are likeliest at equally many,
    those with the larger mean.

    Args:
        maps: ``(K, h', w')`` probabilities.
        count: how many, at most ``K``.
        always: labels that are among them in any case, at most ``count``.

    Returns:
        ``(count,)`` int64 on the CPU, ascending.
    """
    places = maps.flatten(1)
    areas = torch.bincount(places.argmax(0).cpu(), minlength=len(maps))
    # A mean is at most 1, and a place counts 1.
    score = areas + places.mean(1).cpu().double()
    score[list(always)] = torch.inf
    return score.topk(count).indices.sort().values


def among(maps: Tensor, labels: Tensor) -> Tensor:
    """Probabilities of some labels, ``(K', h', w')`` of ``(K, h', w')``, not yet made to sum to 1.

    A place where none of them has any holds all of them alike.
    """
    return maps[labels.to(maps.device)].clamp(min=LEAST_PROBABILITY)


def prior_on_tokens(
    words: Tensor | None,
    seeds: Sequence[Seeds | None],
    labels: Sequence[Sequence[str]],
    grid: tuple[int, int],
    device: torch.device,
    own: slice = slice(None),
) -> Tensor:
    """The node-to-label matrix ``G`` of images, ``(B, N, K)`` float32, of words and of seeds.

    Args:
        words: ``(B, N, K')``, the prior of the first ``K'`` labels, ``None`` where there are seeds
            alone.
        seeds: of each image.
        labels: all ``K`` labels of each image.
        grid: ``(h, w)`` of the tokens.
        device: of the result where there are no words.
        own: the tokens of the grid that are wanted, and that ``words`` holds.
    """
    if words is None:
        alone = [
            one.prior(grid, names, own=own) for one, names in zip(seeds, labels, strict=True) if one
        ]
        return torch.stack(alone).to(device)
    if not any(seeds):
        return words
    words = pad(words, (0, len(labels[0]) - words.shape[-1]))
    return torch.stack(
        [
            said if one is None else one.prior(grid, names, said, own)
            for one, names, said in zip(seeds, labels, words, strict=True)
        ]
    ).to(device)


def to_labels(
    maps: Tensor, size: tuple[int, int], least: Tensor | None = None, instead: int = -1
) -> Tensor:
    """Stage 4: the likeliest label of each pixel, ``(K, h, w)`` to ``(H, W)`` int64 on the CPU.

    Args:
        maps: ``(K, h, w)`` probabilities.
        size: ``(H, W)``.
        least: ``(K,)``, the probability that a pixel's label must have; ``None`` takes any.
        instead: the label where it has less, and where no label has any probability, which only
            seeds can leave so.
    """
    with record_function("nerve_fast: resampling"):
        return likeliest(maps, size, least, instead).cpu()


@contextlib.contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """Run on a stream of its own on a GPU, so that later work does not wait for it."""
    if device.type != "cuda":
        yield
        return
    stream = _side_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One a device: the allocator keeps the memory of each stream for itself."""
    return torch.cuda.Stream(device)
