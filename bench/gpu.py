"""``python -m bench.gpu``: is every kernel right on this GPU, and how fast is it?

Checks each kernel against float64 first, on odd shapes and poisoned memory; then measures the
suite's cases, those in 16 bits and of small sizes first, and every configuration of every kernel;
then says which bars are met. What has not been reached when ``--seconds`` are over is named.
Without a GPU the same code runs in Triton's interpreter, which says nothing about speed.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from nerve_fast import NerveConfig, reference
from nerve_fast.bench.harness import suite
from nerve_fast.bench.harness.case import Setting, graph_inputs
from nerve_fast.bench.harness.isolated import in_a_line
from nerve_fast.bench.harness.machine import Machine, interpreted, quantiles
from nerve_fast.bench.harness.poison import poisoned
from nerve_fast.bench.harness.results import Results
from nerve_fast.bench.harness.run import ceilings, results_folder, run_cases
from nerve_fast.bench.pages import bars
from nerve_fast.dispatch import tuning
from nerve_fast.kernels import affinity, entropy, walk
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.numerics import ERROR_BOUNDS, relative_error
from nerve_fast.walked import Walked

CHECK_SECONDS = 200
"""After so long the checks that have not answered have failed."""


def check_kernels(on_gpu: bool) -> list[dict]:
    """Every kernel on odd shapes and all dtypes, on poisoned memory, against float64."""
    dtypes = [torch.float32, torch.float16] + [torch.bfloat16] * on_gpu
    shapes = [(5, 64, (37, 41), 21), (1, 40, (7, 9), 1), (8, 160, (13, 29), 171)]
    if not on_gpu:
        shapes = [(2, 24, (5, 7), 3)]
    checks = [
        checked(what, dtype, [heads, grid[0] * grid[1], head_dim, labels], error, note)
        for (dtype, (heads, head_dim, grid, labels)), errors in all_errors(
            list(itertools.product(dtypes, shapes)), on_gpu
        )
        for what, error, note in errors
    ]
    failed = sum(not check["passed"] for check in checks)
    print(f"{len(checks)} checks against float64, {failed} failed", flush=True)
    return checks


def checked(what: str, dtype: torch.dtype, shape: list[int], error: float, note: str = "") -> dict:
    """One comparison with float64; a failure is printed. NaN fails, and has no JSON."""
    name = str(dtype).removeprefix("torch.")
    passed = error <= ERROR_BOUNDS[dtype]
    if not passed:
        print(f"WRONG {what}, {name}, (H, N, D, K) = {shape}: error {error} {note}".rstrip())
    kept = error if math.isfinite(error) else None
    kind = {"what": what, "dtype": name, "shape": shape}
    return {**kind, "error": kept, "passed": passed, "note": note}


def all_errors(shares: list[tuple], on_gpu: bool) -> Iterator[tuple]:
    """:func:`errors_of` each of ``shares``.

    On a GPU in processes side by side, as compiling on one core would take all the time there is;
    one that dies or hangs is a failure of its share alone.
    """
    if not on_gpu:
        yield from ((share, errors_of(*share)) for share in shares)
        return
    deadline = time.monotonic() + CHECK_SECONDS
    pool = concurrent.futures.ProcessPoolExecutor(
        min(len(shares), os.cpu_count()), multiprocessing.get_context("spawn")
    )
    futures = [(share, pool.submit(errors_of, *share)) for share in shares]
    for share, future in futures:
        try:
            yield share, future.result(max(deadline - time.monotonic(), 0))
        except Exception as error:  # whatever kept the process from answering
            yield share, [("all kernels", math.nan, in_a_line(error))]
    pool.shutdown(wait=False, cancel_futures=True)
    for process in multiprocessing.active_children():
        # One that hangs would keep this process from ending.
        process.kill()


def errors_of(
    dtype: torch.dtype, shape: tuple[int, int, tuple[int, int], int]
) -> list[tuple[str, float, str]]:
    """What was checked for one dtype and shape ``(H, D, grid, K)``, and how far it was off."""
    heads, head_dim, grid, labels = shape
    on_gpu = torch.cuda.is_available()
    setting = Setting(
        grid[0] * grid[1],
        labels=labels,
        # Fewer where they are interpreted.
        steps=10 if on_gpu else 2,
        heads=heads,
        head_dim=head_dim,
        dtype=str(dtype).removeprefix("torch."),
        device="cuda" if on_gpu else "cpu",
    )
    found = []
    with torch.inference_mode():
        for what, mine, expected in kernel_cases(setting, grid, *graph_inputs(setting, 0)):
            try:
                with poisoned():
                    out = mine()
                if isinstance(out, Walked):
                    out = out.probabilities
                found.append((what, relative_error(out, expected()), ""))
            except Exception as error:  # of whatever kind: the other checks go on
                found.append((what, math.nan, in_a_line(error)))
    return found


def kernel_cases(
    setting: Setting, grid: tuple[int, int], q: Tensor, k: Tensor, G: Tensor, w: Tensor
) -> Iterator[tuple[str, Callable, Callable]]:
    """What is checked: a name, the kernels' way, and the reference's in float64."""
    Q, K, wide, g = q.double(), k.double(), w.double(), G.double()
    yield (
        "cosine affinity",
        lambda: affinity.cosine_affinity(q, k, w),
        lambda: reference.cosine_affinity(Q, K, wide),
    )
    yield (
        "cosine affinity a head",
        lambda: affinity.cosine_affinity(q, k),
        lambda: reference.cosine_affinity(Q, K),
    )
    yield (
        "head entropy",
        lambda: entropy.head_entropy(q, k),
        lambda: reference.head_entropy(Q, K),
    )
    for radius in range(1, 5):
        yield (
            f"local affinity, r = {radius}",
            functools.partial(affinity.local_affinity, q, k, grid, w, radius, 0.7),
            functools.partial(reference.local_affinity, Q, K, grid, wide, radius, 0.7),
        )
    tokens = q.shape[1]
    for normalization in NORMALIZATIONS:
        config = NerveConfig(normalization=normalization, steps=setting.steps)
        expected = functools.partial(true_walk, Q, K, g, grid, config)
        for route, stored in routes(normalization, tokens):
            mine = functools.partial(walk.random_walk, route=route, stored_rows=stored)
            yield (
                f"walk, {normalization}, {route}, {stored} rows stored",
                functools.partial(mine, q, k, G, grid, config, None),
                expected,
            )
        local = config.replace(beta=0.0)
        yield (
            f"walk, {normalization}, local alone",
            functools.partial(walk.random_walk, q, k, G, grid, local, None, route="streaming"),
            functools.partial(true_walk, Q, K, g, grid, local),
        )


def true_walk(q, k, prior, grid, config):
    """The walk of the reference, which takes the head weights from the entropies."""
    return reference.random_walk(q, k, prior, grid, config, None).probabilities


def routes(normalization: str, tokens: int) -> list[tuple[str, int]]:
    """The routes that are exact, with the rows they keep: none, all, half."""
    known = [("streaming", 0), ("dense", tokens), ("dense", tokens // 2)]
    return known + [("factorized", 0)] * NORMALIZATIONS[normalization].linear


def time_candidates(machine: Machine, setting: Setting, deadline: float) -> list[dict]:
    """Every configuration of every kernel: what :mod:`nerve_fast.kernels.configs` should prefer."""

    def seconds_of(run: Callable[[], object]) -> float:
        replay = machine.graphed(run) if machine.on_gpu else None
        return quantiles(machine.clock(replay or run, 20 if machine.on_gpu else 1))[0]

    timings = tuning.tune_operations(
        (setting.heads, setting.tokens, setting.head_dim),
        setting.labels,
        machine.device,
        setting.torch_dtype,
        seconds_of,
    )
    found = []
    for timing in timings:
        found.append(dataclasses.asdict(timing))
        print(f"{timing.key}: {timing.text()}", flush=True)
        if time.monotonic() > deadline:
            break
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, help="default: bench/results/MACHINE.json")
    parser.add_argument("--seconds", type=float, default=420, help="default: 420")
    parser.add_argument("--tokens", type=int, nargs="+", help="instead of the usual sizes")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not interpreted():
        print(
            "no GPU that torch can use; TRITON_INTERPRET=1 tries the code on the CPU, without "
            "saying anything about speed",
            file=sys.stderr,
        )
        return 2
    start = time.monotonic()
    deadline = start + options.seconds
    machine = Machine()
    if not machine.on_gpu:
        print("interpreted on the CPU: the times below mean nothing")
    tokens = options.tokens or (None if machine.on_gpu else [64])
    machine.measure_ceilings()
    print(ceilings(machine), flush=True)
    output = options.output or results_folder() / f"{machine.slug}.json"
    tier = "default" if machine.on_gpu else "quick"
    results = Results(machine, output, tier=tier)
    with torch.inference_mode():
        results.put(checks=check_kernels(machine.on_gpu))
        cases = sorted(
            suite.select(machine.device.type, tier, tokens=tokens),
            key=lambda case: (case.setting.dtype != "bfloat16", case.setting.tokens),
        )
        # Configurations come last and need a part of the time.
        late = start + 0.85 * options.seconds
        skipped = run_cases(cases, machine, results, late)
        dtype = "bfloat16" if machine.on_gpu else "float16"
        setting = Setting(tokens[0] if tokens else 16_384, dtype=dtype)
        candidates = time_candidates(machine, setting, deadline)
    results.put(skipped=skipped, candidates=candidates)
    results.finish()
    for bar in bars.judge(results.document):
        print(bar)
    wrong = sum(not check["passed"] for check in results.document["checks"])
    wrong += sum(row.failed for row in results.rows)
    print(
        f"{time.monotonic() - start:.0f} s; {len(skipped)} left out for want of time; "
        f"{wrong} wrong or failed; written to {output}"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
