"""``python -m bench.harness.model``: how long each kernel should take, beside its floor.

Each kernel is compiled for each target as it would be started there; its registers, shared memory,
stages and matrix instructions say how many programs run side by side and what of their work
overlaps. A prediction is the time of matrix units, exponentials, traffic through the shared cache
and through memory, and the launch:

- programs fill the multiprocessors in rounds, and the last round counts as a whole one;
- exponentials hide behind products where a multiprocessor holds two programs or more;
- traffic through the cache hides behind both where it does, or where a wait in the compiled loop
  leaves copies in flight (else each is waited for where it is issued);
- it takes as long as the cache needs for it, and no less than 64 bytes a cycle and multiprocessor.

The floor is the larger of operations over the chip's rate and bytes over its bandwidth.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator

import torch

from nerve_fast import NerveConfig
from nerve_fast.bench.harness import floors
from nerve_fast.bench.harness.case import Setting
from nerve_fast.bench.harness.chips import CHIPS, Chip
from nerve_fast.bench.harness.words import seconds_in_words
from nerve_fast.kernels import affinity, entropy, launch, walk
from nerve_fast.kernels.compiled import Compiled, compile_for
from nerve_fast.kernels.launches import DTYPES
from nerve_fast.normalization import NORMALIZATIONS

CACHE_PORT = 64
"""Bytes a cycle that a multiprocessor takes from the cache that all share."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What a kernel does in one call.

    Attributes:
        products: operations of products.
        exponentials: as many.
        cached: bytes through the cache that all multiprocessors share.
        moved: bytes through memory: the floor's.
    """

    products: float
    exponentials: float
    cached: float
    moved: float

    def floor(self, chip: Chip, itemsize: int) -> float:
        rate = max(chip.products.values()) * chip.multiprocessors * chip.clock
        return max(self.products / rate * _slower(itemsize), self.moved / chip.bandwidth)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The predicted time of one kernel: seconds in all, and of each resource alone."""

    kernel: str
    seconds: float
    floor: float
    parts: dict[str, float]
    resident: int
    compiled: Compiled

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {seconds_in_words(seconds)}"
            for name, seconds in sorted(self.parts.items(), key=lambda part: -part[1])
            if seconds > 0.02 * self.seconds
        )
        one = self.compiled
        return (
            f"{self.kernel:16} {seconds_in_words(self.seconds):>8} floor "
            f"{seconds_in_words(self.floor):>8} {self.floor / self.seconds:5.0%}  "
            f"{one.registers:3} registers, {one.stages} stages, {one.matrix or '-'}, "
            f"{self.resident} resident: {parts}"
        )


def works(setting: Setting, blocks: dict[str, int], cache: int) -> dict[str, Work]:
    """The work of every kernel that has a model, by its name.

    Args:
        setting: the problem.
        blocks: of the kernel in question: rows and columns of a tile.
        cache: bytes of the chip's cache: a stored ``S`` that fits is not read from memory.
    """
    n, channels = setting.tokens, setting.channels
    item = setting.torch_dtype.itemsize
    columns = floors.columns(setting.labels)
    rows = math.ceil(n / blocks.get("BM", n))
    tiles = rows * math.ceil(n / blocks.get("BN", n))
    edges = tiles * (blocks.get("BM", 0) + blocks.get("BN", 0)) * channels * item
    exponentials = n**2 if NORMALIZATIONS[setting.normalization].exponential else 0
    vectors, values = n * channels * item, n * columns * item
    square = n**2 * item
    dense, streaming = (
        floors.dense_step(n, setting.labels, item, item),
        floors.streaming_step(n, channels, setting.labels, item),
    )
    near, entropies = (
        floors.local_affinity(n, channels, item),
        floors.head_entropy(n, channels, item),
    )
    whole = floors.cosine_affinity(n, channels, item)
    read_s = 0 if square <= cache else square
    found = {
        "cosine_affinity": Work(whole.operations, 0, edges + square, whole.moved),
        # q and k once for each row of the window.
        "local_affinity": Work(0, 0, 3 * 2 * vectors, near.moved),
        "pack": Work(0, 0, 4 * vectors, 4 * vectors),
        "head_entropy": Work(
            entropies.operations, setting.heads * n**2, rows * vectors, entropies.moved
        ),
        "streaming_step": Work(
            streaming.operations, exponentials, rows * (vectors + values), streaming.moved
        ),
        "row_statistic": Work(2 * n**2 * channels, exponentials, rows * vectors, 2 * vectors),
        "numerators": Work(2 * n**2 * channels, exponentials, edges + square, 2 * vectors + square),
        "dense_step": Work(
            dense.operations, 0, square + rows * values, dense.moved - square + read_s
        ),
        "moments": Work(2 * n * channels * columns, 0, vectors + values, vectors + values),
        "factorized_step": Work(2 * n * channels * columns, 0, vectors + 3 * values, vectors),
    }
    labels = 4 * n * columns
    for name, moved in (
        ("local_step", floors.local_step(n, setting.labels).moved),
        ("transition", 2 * 4 * 9 * n),
        ("spread", 2 * labels),
        ("weigh", 4 * setting.heads * rows),
    ):
        found[name] = Work(0, 0, moved, moved)
    return found


def resident(chip: Chip, compiled: Compiled) -> int:
    """Programs of a kernel that one multiprocessor holds."""
    by_registers = chip.registers // (max(compiled.registers, 1) * chip.lanes * compiled.warps)
    by_shared = chip.shared // max(compiled.shared, 1)
    return max(min(by_registers, by_shared, chip.warps // compiled.warps), 1)


def predict(chip: Chip, setting: Setting, started: launch.Launch, compiled: Compiled):
    """The :class:`Prediction` for a kernel, or ``None`` where it has no model."""
    name = started.kernel.__name__.removesuffix("_kernel")
    work = works(setting, dict(started.config.blocks), chip.cache).get(name)
    if work is None:
        return None
    units, item = chip.multiprocessors, setting.torch_dtype.itemsize
    rounds = math.ceil(started.programs / units) * units / started.programs
    held = resident(chip, compiled)
    kinds = [chip.products[kind] for kind in compiled.matrix.split() if kind in chip.products]
    rate = max(kinds, default=2 * 128) * units * chip.clock / _slower(item)
    parts = {
        "products": rounds * work.products / rate,
        "exponentials": rounds * work.exponentials / (chip.exponentials * units * chip.clock),
        "cache": max(
            work.cached / chip.cache_bandwidth,
            rounds * work.cached / (CACHE_PORT * units * chip.clock),
        ),
        "memory": work.moved / chip.bandwidth,
        "launch": chip.launch,
    }
    computing = (parts["products"], parts["exponentials"])
    busy = max(computing) if held > 1 else sum(computing)
    overlaps = held > 1 or max(compiled.instructions.waits, default=0) > 0
    busy = max(busy, parts["cache"]) if overlaps else busy + parts["cache"]
    seconds = max(busy, parts["memory"]) + parts["launch"]
    return Prediction(name, seconds, work.floor(chip, item), parts, held, compiled)


def _slower(itemsize: int) -> int:
    """Times that products take longer than in 16 bits: three of tf32, at half the rate."""
    return 6 if itemsize == 4 else 1


def launches(target: str, setting: Setting) -> list[launch.Launch]:
    """The kernels that the operations and routes start for ``setting``, each once.

    Tensors have no storage: nothing is started.
    """
    shape = (setting.heads, setting.tokens, setting.head_dim)
    q, k = (torch.empty(shape, dtype=setting.torch_dtype, device="meta") for _ in range(2))
    prior = torch.empty(setting.tokens, setting.labels, device="meta")
    weights = torch.empty(setting.heads, device="meta")
    with launch.recorded(target) as started:
        affinity.cosine_affinity(q, k, weights)
        affinity.local_affinity(q, k, setting.grid, weights, 1, 1.0)
        entropy.head_entropy(q, k)
        for normalization, route, beta in (
            ("softmax", "streaming", 0.5),
            ("softmax", "dense", 0.5),
            ("softmax", "streaming", 0.0),
            ("l1", "factorized", 0.5),
        ):
            config = NerveConfig(normalization=normalization, beta=beta, steps=2)
            stored = setting.tokens if route == "dense" else 0
            walk.random_walk(
                q, k, prior, setting.grid, config, None, route=route, stored_rows=stored
            )
    found = {}
    for one in started:
        found.setdefault(one.kernel.__name__, one)
    return list(found.values())


def predictions(target: str, setting: Setting, kernels: list[str]) -> Iterator[Prediction | str]:
    """Predict each kernel as compiled for ``target``, or say why there is no prediction."""
    for one in launches(target, setting):
        name = one.kernel.__name__.removesuffix("_kernel")
        if kernels and name not in kernels:
            continue
        compiled = compile_for(target, setting.torch_dtype, one)
        yield predict(CHIPS[target], setting, one, compiled) or f"{name:16} has no model"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.harness.model", description=__doc__)
    parser.add_argument("--target", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bfloat16"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16_384])
    parser.add_argument("--kernel", nargs="+", default=[], help="names, such as streaming_step")
    options = parser.parse_args(arguments)
    if launch.interpreted():
        print("TRITON_INTERPRET is set: there is nothing to compile. Unset it.", file=sys.stderr)
        return 2
    for target in options.target:
        for dtype in options.dtype:
            for tokens in options.tokens:
                chip = CHIPS[target]
                print(f"{chip.name} ({target}), {dtype}, N = {tokens:,}")
                setting = Setting(tokens, dtype=dtype)
                for found in predictions(target, setting, options.kernel):
                    print(f"  {found}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
