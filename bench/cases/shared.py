"""Jobs on walks that processes share, and on rows that head entropies are sampled from."""

import torch

from nerve_fast import NerveConfig, NervePipeline, plan, random_walk
from nerve_fast.bench.harness.memory import Memory
from nerve_fast.bench.harness.together import together
from nerve_fast.blocked.entropy import row_entropies
from nerve_fast.dispatch.costs import exchange
from nerve_fast.ops.entropy import GROUPS, spread_in_groups
from nerve_fast.shares import heights
from nerve_fast.tiny.scenes import generate

HEADS, DIM, LABELS = 5, 16, 21
WALKS = {
    "512 clusters": ((256, 384), {"global_keys": 512}, "streaming"),
    "all keys, S kept": ((96, 128), {}, "dense"),
    "all keys, S recomputed": ((96, 128), {}, "streaming"),
}
"""Grids, settings and routes; two steps each."""

WAYS = ("strided", "one of each part", "drawn")
GRIDS = ((64, 64), (48, 80), (96, 96))
DRAWS = 200
SEED = 1_200_000


def _peak(group, name: str) -> int:
    """Peak resident bytes of this process's share beyond its inputs, after a small run."""
    grid, changes, route = WALKS[name]
    config = NerveConfig(steps=2, **changes)
    weights = torch.full((HEADS,), 1 / HEADS)

    def share_of(grid):
        tokens = heights(grid[0], group.size())[group.rank()] * grid[1]
        q, k = torch.randn(2, HEADS, tokens, DIM)
        prior = torch.rand(tokens, LABELS).softmax(-1)
        way = {"head_weights": weights, "backend": "blocked", "route": route, "group": group}
        return lambda: random_walk(q, k, prior, grid, config, **way)

    with torch.inference_mode():
        share_of((32, 32))()
        run = share_of(grid)
        memory = Memory("cpu")
        run()
        found, _ = memory.peak()
        return found or 0


def memory() -> dict:
    """Peak bytes beyond the inputs of the largest share, by walk and number of processes."""
    return {
        name: {str(count): max(together(count, _peak, name)) for count in (1, 2, 3)}
        for name in WALKS
    }


def prediction() -> dict:
    """What the cost model says of 64 processes and 100 million tokens; nothing is measured."""
    grid, processes = (10_000, 10_000), 64
    config = NerveConfig(global_keys=2048)
    planned = plan(
        (5, grid[0] * grid[1], 64),
        LABELS,
        config=config,
        route="streaming",
        weights_given=True,
        grid=grid,
        processes=processes,
        max_memory=1 << 60,
    )
    moved = exchange(planned.problem, planned.route)
    return {
        "processes": processes,
        "tokens": grid[0] * grid[1],
        "clusters": config.global_keys,
        "labels": LABELS,
        "once": moved.once,
        "step": moved.step,
        "memory": planned.peak_memory,
    }


def _rows(way: str, tokens: int, count: int, number: int) -> torch.Tensor:
    """``count`` of the rows, the ``number``-th time."""
    if way == "strided":
        # From another one each time.
        first = number * tokens // count // DRAWS
        return torch.arange(count) * tokens // count + first
    if way == "one of each part":
        return spread_in_groups(tokens, count, number).flatten()
    return torch.randperm(tokens, generator=torch.Generator().manual_seed(number))[:count]


def rows(count: int = 1024) -> dict:
    """Errors of head entropies from ``count`` rows in nats, by graph and by the way they are taken.

    Returns:
        The root mean square over draws and heads of each way; and of the way that the package takes
        its standard error, from 16 groups, in the same mean.
    """
    pipe = NervePipeline.from_pretrained("tiny", device="cpu")
    found = {}
    for height, width in GRIDS:
        scene = generate(SEED, (4 * width, 4 * height))[0]
        graph = pipe.encode(scene, processing_resolution=0).graph
        drawn = torch.randn(2, 3, height * width, 32, generator=torch.Generator().manual_seed(0))
        for what, (q, k) in (("tiny models", (graph.q[0], graph.k[0])), ("random", drawn)):
            all_rows = torch.stack([row_entropies(*one) for one in zip(q, k, strict=True)])
            grid = "{} × {}".format(*(graph.grid if what == "tiny models" else (height, width)))
            found[f"{what}, {grid}"] = _errors(all_rows.double(), count)
    return {"count": count, "draws": DRAWS, "graphs": found}


def _errors(all_rows: torch.Tensor, count: int) -> dict:
    tokens, mean = all_rows.shape[1], all_rows.mean(1)
    found = {}
    for way in WAYS:
        samples = [all_rows[:, _rows(way, tokens, count, number)] for number in range(DRAWS)]
        errors = torch.stack([sample.mean(1) - mean for sample in samples])
        found[way] = errors.square().mean().sqrt().item()
        if way == "one of each part":
            groups = torch.stack(samples).unflatten(-1, (-1, GROUPS)).mean(-2)
            said = groups.var(-1) / GROUPS * (1 - count / tokens)
            found["standard error"] = said.mean().sqrt().item()
    return found
