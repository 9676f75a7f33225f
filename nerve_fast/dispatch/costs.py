"""What each route of the walk costs: operations, bytes, memory, and the time they should take."""

import dataclasses
import functools
import json
import math
from importlib import resources

import torch

from nerve_fast.dispatch.problem import Problem


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
    """The work of a route, for the whole batch.

    Args:
        backend: ``reference``, which is always dense, ``blocked`` or ``triton``.
        route: ``dense``, ``streaming`` or ``factorized``.
        stored_rows: rows of ``S`` that ``dense`` keeps.
    """
    itemsize = problem.stored_itemsize(backend)
    p, c = problem, problem.config
    pairs = p.tokens * p.columns
    affinities = Work(elements=pairs)
    if itemsize == 2:
        affinities += Work(products16=2 * pairs * p.channels)
    else:
        affinities += Work(products=2 * pairs * p.channels)
    kept = stored_rows / p.tokens
    row_bytes = pairs * itemsize * math.ceil((p.labels + 1) / 32)

    total = Work()
    if not p.weights_given and (c.sharpness > 0 or backend == "reference"):
        maps = p.heads * p.tokens**2
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
        total += Work(stencil=p.tokens * p.window * (p.channels + p.labels * p.steps))
    if c.beta > 0:
        if route == "factorized":
            products = 4 * p.tokens * p.channels * p.labels
            total += Work(products=products) * p.steps
        else:
            total += affinities * kept
            total += (affinities * (1 - kept) + Work(narrow_bytes=row_bytes)) * p.steps
        if p.rule.signed:
            total += affinities
    return total * p.batch


def peak_memory(problem: Problem, backend: str, route: str, stored_rows: int = 0) -> int:
    """Bytes needed beyond the inputs, an upper bound."""
    p = problem
    if backend == "reference":
        maps = (2 if p.weights_given else 4) * p.heads + 6
        return p.batch * p.itemsize * p.tokens**2 * maps
    stored = stored_rows * row_memory(p, backend)
    if backend == "triton":
        return p.batch * (stored + p.tokens * _kernel_bytes(p)) + KERNEL_WORKSPACE
    copies = 2 * p.stored_itemsize(backend)
    if route == "factorized" and not p.rule.signed:
        # This route has no large product, so the packed heads are not copied.
        copies = 0
    packed = p.tokens * p.channels * (2 * p.itemsize + copies)
    packed += 4 * p.tokens * p.heads * p.itemsize
    stencil = p.tokens * p.window * 5 * p.itemsize
    values = p.tokens * (p.labels + 1) * (8 + 2 * p.batch) * p.itemsize
    tiles = (64 << 20) if p.device.type == "cpu" else (1 << 30)
    return packed + stencil + values + tiles + stored


KERNEL_WORKSPACE = 64 << 20
"""Bytes for partial sums of split tiles, moments and counters: one tile per multiprocessor."""


def _kernel_bytes(p: Problem) -> int:
    """Bytes per token that the kernels keep: packed heads, local weights, both forms of ``Y``."""
    channels = -(-p.channels // 64) * 64
    packed = 2 * channels * p.dtype.itemsize
    if p.config.global_stride > 1:
        # Pooled in float32.
        packed += 3 * channels * 4
    columns = 16 + 3 * p.labels
    return packed + 2 * p.window * 4 + columns * (2 * 4 + 2 * p.dtype.itemsize) + 8


def row_memory(problem: Problem, backend: str) -> int:
    """Bytes of one stored row of ``S``."""
    columns = problem.columns
    if backend == "triton":
        columns = -(-columns // 128) * 128
    return columns * problem.stored_itemsize(backend)
