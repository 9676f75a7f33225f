"""What each route of the walk costs: operations, bytes, memory, and the time they should take."""

import dataclasses
import functools
import json
import math
from importlib import resources

import torch

from nerve_fast.blocked.affinity import BLOCK, row_pitch, stripe_rows
from nerve_fast.blocked.tiles import product_columns
from nerve_fast.clusters import (
    COLUMNS,
    COMPONENT_ROUNDS,
    COMPONENT_TOKENS,
    COMPONENTS,
    ROUNDS,
    block_rows,
    sample_size,
)
from nerve_fast.dispatch.problem import Problem
from nerve_fast.utils.cores import at_once
from nerve_fast.utils.units import format_bytes


@dataclasses.dataclass(frozen=True)
class Work:
    """How much of each kind of work a route does, in the units that rates are given for.

    Attributes:
        products: operations of large products in 32 bits or more.
        products16: operations of large products in 16 bits.
        elements: affinities made, normalised and thrown away.
        narrow_bytes: bytes of ``S`` read for products with the few columns of ``Y``.
        stencil: multiply-adds of the local part.
        maps: elements of ``(H, N, N)`` maps written or read.
    """

    products: float = 0
    products16: float = 0
    elements: float = 0
    narrow_bytes: float = 0
    stencil: float = 0
    maps: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def __mul__(self, factor: float) -> "Work":
        return Work(*(factor * value for value in self.values()))

    def values(self) -> tuple[float, ...]:
        return dataclasses.astuple(self)

    @property
    def flops(self) -> int:
        """Floating-point operations, those of products and of the stencil."""
        return round(self.products + self.products16 + 2 * self.stencil)

    def seconds(self, backend: str, device: torch.device) -> float:
        """Estimated time, on the machine that the rates are those of."""
        rates = rates_for(backend, device)["seconds_per_unit"]
        return sum(value * rates[name] for name, value in dataclasses.asdict(self).items())


def rates_for(backend: str, device: torch.device) -> dict:
    """The constants of the cost model; ``source`` says where they come from."""
    if backend == "triton":
        return _rates()["triton"]
    return _rates()["cuda" if device.type == "cuda" else "cpu"]


@functools.cache
def _rates() -> dict:
    return json.loads(resources.files("nerve_fast.dispatch").joinpath("rates.json").read_text())


def work(problem: Problem, backend: str, route: str, stored_rows: int = 0) -> Work:
    """The work of a route, for the whole batch; of shared ones that of this process.

    Args:
        backend: ``reference``, which is always dense, ``blocked`` or ``triton``.
        route: ``dense``, ``streaming`` or ``factorized``.
        stored_rows: rows of ``S`` that ``dense`` keeps.
    """
    itemsize = problem.stored_itemsize(backend)
    p, c = problem, problem.config
    pairs = p.own * p.columns
    affinities = Work(elements=pairs)
    if itemsize == 2:
        affinities += Work(products16=2 * pairs * p.channels)
    else:
        affinities += Work(products=2 * pairs * p.channels)
    kept = stored_rows / p.own
    row_bytes = pairs * itemsize * math.ceil((p.labels + 1) / 32)

    total = Work()
    if not p.weights_given and (c.sharpness > 0 or backend == "reference"):
        maps = p.heads * p.own * p.tokens
        total += Work(products=2 * maps * p.head_dim, elements=maps)
        if backend == "reference":
            total += Work(maps=4 * maps)
    if backend == "reference":
        maps = p.heads * p.tokens**2
        total += Work(products=2 * maps * p.head_dim, elements=2 * p.tokens**2, maps=4 * maps)
        read = p.tokens**2 * p.itemsize * math.ceil(p.labels / 32)
        total += Work(narrow_bytes=read) * p.steps
        return total * p.batch
    if c.beta < 1:
        total += Work(stencil=p.own * p.window * (p.channels + p.labels * p.steps))
    if c.beta > 0:
        if route == "factorized":
            products = 4 * p.own * p.channels * p.labels
            total += Work(products=products) * p.steps
        else:
            total += affinities * kept
            total += (affinities * (1 - kept) + Work(narrow_bytes=row_bytes)) * p.steps
        if p.rule.signed:
            total += affinities
        if p.clustered:
            channels = min(p.channels, COMPONENTS)
            distances = (p.own + ROUNDS * sample_size(p.columns, p.tokens)) * p.columns
            total += Work(products=2 * distances * channels, elements=distances)
            if p.channels > COMPONENTS:
                reduced = p.own + sample_size(p.columns, p.tokens)
                reduced += 2 * COMPONENT_ROUNDS * min(COMPONENT_TOKENS, p.tokens)
                total += Work(products=2 * reduced * p.channels * COMPONENTS)
    return total * p.batch


def peak_memory(problem: Problem, backend: str, route: str, stored_rows: int = 0) -> int:
    """Bytes needed beyond the inputs: a bound, not an estimate.

    What ``return_steps`` asks for is not among them: each takes as much as the result, and twice
    that for a batch. Without a grid the bound is that of the grid which takes the most.
    """
    return _walk_memory(problem, backend, route, stored_rows) + cluster_memory(problem)


def cluster_memory(p: Problem) -> int:
    """Bytes of clusters and of finding them, for any backend."""
    if not p.clustered:
        return 0
    # Who is where, in which order, and on the way to it.
    kept = p.batch * (10 * 8 * p.own + 6 * 8 * p.columns)
    if p.processes > 1:
        # The draw of all tokens, which of them are whose, and which are seeds.
        kept += 20 * p.tokens
    channels, sample = min(p.channels, COMPONENTS), sample_size(p.columns, p.tokens)
    # Seeds may have half of the clusters; the sample is compared, and so are the own tokens.
    fewest = max(p.columns // 2, 1)
    compared = min(block_rows(fewest, channels, p.device), max(p.own, sample))
    distances = 3 * 4 * p.columns * compared
    points = 4 * channels * 4 * (sample + p.columns + compared)
    # Keys of a block, and those that components are found from.
    rows = min(block_rows(fewest, p.channels, p.device), p.own)
    keys = 4 * p.channels * 4 * max(min(COMPONENT_TOKENS, p.tokens), rows)
    keys += 4 * p.channels * 8 * COMPONENTS
    # Of what is summed a few columns at a time.
    in_order = p.batch * p.own * COLUMNS * (p.itemsize + p.dtype.itemsize)
    found = points + keys + distances
    return kept + found + in_order + 3 * p.batch * p.columns * p.channels * p.itemsize


def _walk_memory(p: Problem, backend: str, route: str, stored_rows: int) -> int:
    if backend == "reference":
        maps = (2 if p.weights_given else 4) * p.heads + 10 + 4 * p.clustered
        values = 8 * p.batch * p.tokens * p.labels * p.itemsize
        # The windows are found from the distances of all pairs, in 64 bits.
        return p.tokens**2 * (p.batch * p.itemsize * maps + 32) + values + REFERENCE_WORKSPACE
    stored = stored_rows * row_memory(p, backend)
    if backend == "triton":
        return p.batch * (stored + p.tokens * _kernel_bytes(p)) + KERNEL_WORKSPACE
    # Of queries and keys: packed, and as products take them, which is as they are for products in
    # the dtype of sums. Of clusters the means alone stay.
    packed = (2 - p.clustered) * p.own * p.channels * p.itemsize
    narrow = p.stored_itemsize(backend)
    gathers = route != "factorized" or p.rule.signed
    if narrow < p.itemsize and gathers:
        packed += (p.own + p.columns) * p.channels * narrow
    packed += 4 * p.own * p.heads * p.itemsize
    if p.processes > 1:
        packed += _gathered_bytes(p, narrow, gathers)
    columns = 8 + 2 * p.batch
    if p.config.steps is None:
        # The prior's share, the walk before the last step, and their difference.
        columns += 3
    values = p.own * (p.labels + 1) * columns * p.itemsize
    values += 2 * p.columns * product_columns(p.labels + 1) * p.itemsize
    tiles = (64 << 20) if p.device.type == "cpu" else (1 << 30)
    together = at_once(p.batch, p.tokens, p.device) if p.processes == 1 else 1
    return together * (packed + _stencil_bytes(p) + tiles + stored) + values


def _gathered_bytes(p: Problem, narrow: int, gathers: bool) -> int:
    """Bytes of what a process has of others: their keys and values, those of its halo, queries."""
    held = 0
    if gathers and not p.clustered:
        # All keys, and the walk beside the row sums, once more while they are put together.
        held += p.tokens * (p.channels * narrow + 3 * (p.labels + 1) * p.itemsize)
    if p.config.beta < 1:
        halo = min(2 * p.radius * p.sides[1], p.tokens)
        held += (p.own + halo) * (p.channels + p.labels) * p.itemsize
    if not p.weights_given:
        held += 2 * p.own * p.channels * p.dtype.itemsize
    return held


def _stencil_bytes(p: Problem) -> int:
    """Bytes of the local part: its weights and the copies on the way to them, padded operands."""
    if p.config.beta == 1:
        return 0
    # Of a grid that is not known: rows of one token are filled up to a block of them.
    widths = [p.sides[1]] if p.grid else [p.tokens, 1]
    weights = p.own * p.window * (7 * p.itemsize + 4)
    stripe = max(_stripe_bytes(p, width) for width in widths)
    return weights + stripe + p.padded * (p.labels * p.itemsize + 1)


def _stripe_bytes(p: Problem, width: int) -> int:
    """Bytes of the packed queries and keys of a stripe of the grid, and of their products."""
    rows = stripe_rows(width, p.channels, p.radius, p.itemsize)
    rows = min(rows, max(p.own // width, 1))
    pitch = row_pitch(width, p.radius) * p.itemsize
    packed = (2 * rows + 2 * p.radius + 1) * pitch * p.channels
    return packed + rows * pitch * (BLOCK + 2 * p.radius + 2 * p.window)


REFERENCE_WORKSPACE = 32 << 20
"""What the allocator keeps besides the maps."""

KERNEL_WORKSPACE = 64 << 20
"""Bytes for partial sums of split tiles, moments and counters: one tile per multiprocessor."""


def _kernel_bytes(p: Problem) -> int:
    """Bytes per token that the kernels keep: packed heads, local weights, both forms of ``Y``."""
    channels = -(-p.channels // 64) * 64
    packed = 2 * channels * p.dtype.itemsize
    columns = 16 + 3 * p.labels
    local = 2 * p.window * 4 if p.config.beta < 1 else 0
    kept = 2 * 4 + 2 * p.dtype.itemsize
    if p.config.steps is None:
        # What the last step changed, and its magnitude.
        kept += 2 * 4
    return packed + local + columns * kept + 8


def row_memory(problem: Problem, backend: str) -> int:
    """Bytes of one stored row of ``S``."""
    columns = problem.columns
    if backend == "triton":
        columns = -(-columns // 128) * 128
    return columns * problem.stored_itemsize(backend)


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Bytes that a process of a group receives in a walk, and sends as many; a batch of one.

    Attributes:
        once: before the first step: the keys that components are found from, the sample that
            clusters are found from, their centres and means, or all keys; those of the halo; the
            queries for entropies of all rows.
        step: in each step: the clusters' sums, or the walk of all other tokens; that of the halo.
    """

    once: int
    step: int

    def __str__(self) -> str:
        return (
            f"each process receives {format_bytes(self.once)} before the first step and "
            f"{format_bytes(self.step)} in each"
        )


def exchange(p: Problem, route: str) -> Exchange:
    r"""What a process in the middle of the grid receives, by ``P`` of them.

    An all-reduce of ``n`` bytes is :math:`2 n (P - 1) / P` for each process (a ring), and gathering
    what the others hold of ``n`` is :math:`n (P - 1) / P`. With clusters a step is

    .. math:: 8 M K \frac{P - 1}{P} + 8 r w K

    bytes in float32, where rows of the grid have ``w`` tokens, however many rows there are.
    """
    others = (p.processes - 1) / p.processes
    halo = 2 * p.radius * p.sides[1] * p.itemsize if p.config.beta < 1 and others else 0
    once, step = float(halo * p.channels), float(halo * p.labels)
    if p.config.beta > 0:
        if p.clustered:
            channels = min(p.channels, COMPONENTS)
            # Points of the sample and their codes; the centres; the clusters' means.
            once += 2 * others * (4 * channels + 8) * sample_size(p.columns, p.tokens)
            once += others * 4 * channels * p.columns
            once += 2 * others * p.itemsize * p.channels * p.columns
            if p.channels > COMPONENTS:
                some = min(COMPONENT_TOKENS, p.tokens)
                once += others * 4 * p.channels * (2 * some + COMPONENTS)
            step += 2 * others * p.columns * p.labels * p.itemsize
        elif route == "factorized":
            step += 2 * others * (p.channels + 1) * p.labels * p.itemsize
        else:
            step += others * p.tokens * p.labels * p.itemsize
        if not p.clustered and (route != "factorized" or p.rule.signed):
            once += others * p.tokens * p.channels * p.stored_itemsize("blocked")
    if not p.weights_given and p.config.sharpness > 0:
        # Queries, and of each row and head what the keys of all processes add to its entropy.
        once += others * p.tokens * p.channels * p.dtype.itemsize
        once += 3 * 2 * others * p.tokens * p.heads * p.itemsize
    return Exchange(round(once), round(step))
