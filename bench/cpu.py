"""``python -m bench.cpu``: the blocked backend against the dense reference, side by side.

Prints each bar, what was measured, and whether it is met. H = 5, D = 64, K = 21, L = 10, r = 1;
head weights are given, so that the walk alone is timed.
"""

import argparse
import os
import platform
from collections.abc import Callable

import torch

from bench import cases
from bench.isolated import Measurement, measure
from nerve_fast import NerveConfig, plan
from nerve_fast.blocked.precision import cpu_has_bfloat16

BF16 = torch.bfloat16
LABELS = 21
N = 16_384


class Bench:
    """Measures each case once however many rows ask for it, and prints rows as they come."""

    def __init__(self):
        self.known: dict = {}
        self.missed = 0

    def run(self, make: Callable, *arguments, runs: int = 3) -> Measurement:
        key = (make.__name__, arguments)
        if key not in self.known:
            self.known[key] = measure(make, *arguments, runs=runs)
        return self.known[key]

    def row(self, what: str, *figures: tuple[str, float, str, float]) -> None:
        """A row: each figure is its name, the value, ``>=`` or ``<=``, and the bar."""
        texts, met = [], True
        for name, value, relation, bar in figures:
            holds = value >= bar if relation == ">=" else value <= bar
            met &= holds
            texts.append(
                f"{name} {value:.3g} (bar {relation} {bar:g}{'' if holds else ', MISSED'})"
            )
        self.missed += not met
        print(f"{'met   ' if met else 'MISSED'} {what}: {'; '.join(texts)}", flush=True)


def against(bench: Bench, what, new, old, times, share) -> None:
    """A row of speed-up and share of memory."""
    bench.row(
        what,
        ("times faster", old.seconds / new.seconds, ">=", times),
        ("share of its memory", new.peak_memory / old.peak_memory, "<=", share),
    )


def main() -> int:
    argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__).parse_args()
    torch.set_num_threads(os.cpu_count())
    bf16 = "has" if cpu_has_bfloat16() else "lacks"
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}; the CPU {bf16} bfloat16 products"
    )
    bench = Bench()
    walk, dense = cases.blocked_walk, cases.reference_walk

    for normalization, route, dtype, times in (
        ("shift", "factorized", torch.float32, 20),
        ("l1", "factorized", torch.float32, 3),
        ("l1", "factorized", BF16, 5),
    ):
        new = bench.run(walk, N, LABELS, normalization, route, dtype)
        old = bench.run(dense, N, LABELS, normalization, runs=1)
        against(bench, f"{normalization}, {route}, {dtype}, N = {N}", new, old, times, 0.05)

    old = bench.run(dense, N, LABELS, "softmax", runs=1)
    new = bench.run(walk, N, LABELS, "softmax", "dense", BF16)
    against(bench, f"softmax, dense 16-bit S, N = {N}", new, old, 2.5, 0.5)
    for normalization in ("softmax", "relu"):
        old = bench.run(dense, N, LABELS, normalization, runs=1)
        for dtype, times in ((BF16, 1.5), (torch.float32, 0.25)):
            new = bench.run(walk, N, LABELS, normalization, "streaming", dtype, runs=1)
            against(bench, f"{normalization}, streaming, {dtype}, N = {N}", new, old, times, 0.1)

    small = bench.run(walk, N, LABELS, "shift", "factorized", torch.float32)
    large = bench.run(walk, 262_144, LABELS, "shift", "factorized", torch.float32)
    huge = bench.run(walk, 1_048_576, LABELS, "shift", "factorized", torch.float32, runs=1)
    bench.row(
        "shift, N = 262,144",
        ("times the time of 16,384", large.seconds / small.seconds, "<=", 20),
        ("GB resident", large.resident / 1e9, "<=", 2.5),
    )
    bench.row("shift, N = 1,048,576", ("GB resident", huge.resident / 1e9, "<=", 10))

    new = bench.run(cases.blocked_entropy, 4096)
    old = bench.run(cases.reference_entropy, 4096)
    against(bench, "head entropy, N = 4096", new, old, 2, 0.05)

    new = bench.run(cases.blocked_local_walk, 65_536, LABELS)
    old = bench.run(cases.unfold_local_walk, 65_536, LABELS)
    bench.row(
        "local affinity and 10 steps, N = 65,536, against unfold",
        ("times faster", old.seconds / new.seconds, ">=", 10),
    )
    for dtype in (torch.float32, BF16):
        new = bench.run(walk, 4096, LABELS, "softmax", "streaming", dtype)
        old = bench.run(cases.sdpa_walk, 4096, LABELS, dtype)
        bench.row(
            f"softmax, streaming, {dtype}, N = 4096, against SDPA",
            ("times faster", old.seconds / new.seconds, ">=", 1),
        )
    regret(bench)
    print(f"{bench.missed} bars missed")
    return 0


def regret(bench: Bench) -> None:
    """How much slower the route that ``auto`` takes is than the best one measured."""
    for tokens in (1024, 4096, N):
        for normalization in ("softmax", "relu", "l1", "shift"):
            for dtype in (torch.float32, BF16):
                chosen = plan(
                    (cases.HEADS, tokens, cases.HEAD_DIM),
                    LABELS,
                    config=NerveConfig(normalization=normalization),
                    dtype=dtype,
                    weights_given=True,
                )
                routes = ["dense"] + ["factorized"] * (normalization in ("l1", "shift"))
                routes += ["streaming"] * (tokens <= 4096)
                runs = 7 if tokens <= 4096 else 3
                seconds = {
                    route: bench.run(
                        cases.blocked_walk, tokens, LABELS, normalization, route, dtype, runs=runs
                    ).seconds
                    for route in routes
                }
                bench.row(
                    f"auto takes {chosen.route}, {normalization}, {dtype}, N = {tokens}",
                    ("of the best time", seconds[chosen.route] / min(seconds.values()), "<=", 1.1),
                )


if __name__ == "__main__":
    raise SystemExit(main())
