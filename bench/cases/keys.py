"""Keys in clusters against all of them, and against keys pooled over cells of the grid."""

import functools
import statistics

import torch

from nerve_fast import NerveConfig, NervePipeline, plan
from nerve_fast.backbones.source import GraphFeatures
from nerve_fast.bench.cases.large import BUDGET, LABELS, timed, tiny
from nerve_fast.clusters import Clusters, cluster_keys
from nerve_fast.numerics import relative_error
from nerve_fast.pipeline import stages
from nerve_fast.pipeline.budget import ENTROPY_ROWS
from nerve_fast.refiners.walk import weights_of

STRIDES = (2, 4, 8, 16)
COUNTS = (256, 1024, 2048, 4096)
CLICKS = {
    "0": [(0.2, 0.2), (0.5, 0.1)],
    "1": [(0.5, 0.5), (0.4, 0.6)],
    "2": [(0.8, 0.9), (0.1, 0.9)],
}
"""Seeds on a photograph as shares of its sides: what they are on does not matter here."""


def cells(grid: tuple[int, int], stride: int) -> Clusters:
    """Tokens grouped by where they are: cells of ``stride × stride`` of them, ``(1, N)``."""
    h, w = grid
    y, x = torch.arange(h) // stride, torch.arange(w) // stride
    wide = -(-w // stride)
    assignment = (y[:, None] * wide + x).flatten()
    return Clusters.of(assignment[None], wide * -(-h // stride))


def on_scene(path: str) -> dict:
    """A scene of the tiny world, its words and models."""
    pipe = tiny()
    features = pipe.encode(path, processing_resolution=0)
    return compared(pipe, features, functools.partial(pipe, features, LABELS))


def on_photograph(path: str, graph: str, side: int) -> dict:
    """A photograph with the features of a DINO, clicks in place of words."""
    pipe = NervePipeline.from_pretrained(clip=False, graph=graph, device="cpu")
    features = pipe.encode(path, processing_resolution=side)
    width, height = features.image.size
    points = {
        name: [(round(x * width), round(y * height)) for x, y in some]
        for name, some in CLICKS.items()
    }
    return compared(pipe, features, functools.partial(pipe, features, points=points))


def compared(pipe: NervePipeline, features, call) -> dict:
    """Both ways of grouping at several numbers of keys, beside all keys, in one process.

    Times are those of clusters and walk, without the networks.
    """
    config, graph = NerveConfig(), features.graph
    out = call(global_keys=1)
    G = out.prior.flatten(1).T[None].contiguous()
    entropy = features.entropies(ENTROPY_ROWS, pipe.backend).mean
    size = (out.label_map.shape[0], out.label_map.shape[1])

    def walked(find=None, config=config):
        clusters = None if find is None else find()
        some = config if clusters is None else config.replace(global_keys=clusters.count)
        way = plan(
            graph.q.shape,
            G.shape[-1],
            config=some,
            dtype=graph.q.dtype,
            grid=graph.grid,
            max_memory=BUDGET,
            weights_given=True,
        )
        (maps,) = stages.walk(graph, G, some, entropy=entropy, clusters=clusters, plan=way)
        return maps.maps

    def warm(find=None):
        # The first one waits for memory, of which one step takes as much as ten.
        walked(find, config.replace(steps=1))
        return timed(functools.partial(walked, find))

    exact, seconds = warm()
    expected = stages.to_labels(exact, size)
    rows = [{"grouping": "all", "keys": G.shape[1], "seconds": seconds}]
    ways = [("cells", functools.partial(cells, graph.grid, stride)) for stride in STRIDES]
    weights = weights_of(graph, config, entropy)
    ways += [
        ("clusters", functools.partial(cluster_keys, graph.k, weights, count, G))
        for count in COUNTS
        if count < G.shape[1]
    ]
    for grouping, find in ways:
        maps, seconds = warm(find)
        labels = stages.to_labels(maps, size)
        rows.append(
            {
                "grouping": grouping,
                "keys": find().count,
                "seconds": seconds,
                "error": relative_error(maps, exact),
                "agreement": (labels == expected).double().mean().item(),
            }
        )
    return {"tokens": G.shape[1], "rows": rows}


def growth(small: int, large: int, keys: int = 2048) -> dict:
    """Seconds of walks on random features of the tiny models' size, at two numbers of tokens."""
    found = {}
    for side in (small, large):
        q, k = torch.randn(2, 1, 8, side * side, 32, generator=torch.Generator().manual_seed(0))
        G = torch.rand(1, side * side, len(LABELS)).softmax(-1)
        entropy = torch.zeros(1, 8)
        config = NerveConfig(global_keys=keys)
        graph = GraphFeatures(q, k, (side, side))
        turns = 3 if side == small else 1
        run = functools.partial(stages.walk, graph, G, config, entropy=entropy)
        # The first one waits for memory.
        run()
        found[str(side * side)] = statistics.median(timed(run)[1] for _ in range(turns))
    return found
