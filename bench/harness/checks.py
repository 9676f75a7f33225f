"""Every kernel against float64, on odd shapes and poisoned memory."""

import functools
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from nerve_fast import NerveConfig, random_walk, reference
from nerve_fast.bench.harness.poison import poisoned
from nerve_fast.bench.harness.side_by_side import side_by_side
from nerve_fast.dispatch.selfcheck import Comparison, compare, inputs
from nerve_fast.kernels import affinity, entropy, walk
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.numerics import ERROR_BOUNDS

CHECK_SECONDS = 120
"""After so long the checks that have not answered have failed."""

REPLAYED = 4
"""Calls of the public walk on like inputs: more than it makes before it records a graph."""


def check_kernels(on_gpu: bool, alone: bool = False) -> list[dict]:
    """Every kernel on odd shapes and all dtypes, on poisoned memory, against float64.

    Args:
        on_gpu: else in Triton's interpreter, on one small shape.
        alone: in this process and on the small shape, as a sanitizer wants it.
    """
    dtypes = [torch.float32, torch.float16] + [torch.bfloat16] * on_gpu
    shapes = [(5, 64, (37, 41), 21), (1, 40, (7, 9), 1), (8, 160, (13, 29), 171)]
    if alone or not on_gpu:
        shapes = [(2, 24, (5, 7), 3)]
    checks = [
        checked(what, dtype, [heads, grid[0] * grid[1], head_dim, labels], error, note)
        for (dtype, (heads, head_dim, grid, labels)), errors in all_errors(
            list(itertools.product(dtypes, shapes)), on_gpu, alone
        )
        for what, error, note in errors
    ]
    failed = sum(not check["passed"] for check in checks)
    print(f"{len(checks)} checks against float64, {failed} failed", flush=True)
    return checks


def checked(what: str, dtype: torch.dtype, shape: list[int], error: float, note: str = "") -> dict:
    """One comparison with float64; a failure is printed. NaN fails, and has no JSON."""
    name = str(dtype).removeprefix("torch.")
    passed = error <= ERROR_BOUNDS[dtype] and not note
    if not passed:
        print(f"WRONG {what}, {name}, (H, N, D, K) = {shape}: error {error} {note}".rstrip())
    kept = error if math.isfinite(error) else None
    kind = {"what": what, "dtype": name, "shape": shape}
    return {**kind, "error": kept, "passed": passed, "note": note}


def all_errors(shares: list[tuple], on_gpu: bool, alone: bool) -> Iterator[tuple]:
    """:func:`errors_of` each of ``shares``.

    On a GPU in processes side by side, as compiling on one core would take all the time there is.
    """
    if alone or not on_gpu:
        yield from ((share, errors_of(*share)) for share in shares)
        return
    for share, errors, problem in side_by_side(errors_of, shares, CHECK_SECONDS):
        yield share, errors if errors is not None else [("all kernels", math.nan, problem)]


def errors_of(
    dtype: torch.dtype, shape: tuple[int, int, tuple[int, int], int]
) -> list[tuple[str, float, str]]:
    """Return the checks of one dtype and shape ``(H, D, grid, K)`` and their errors."""
    grid = shape[2]
    on_gpu = torch.cuda.is_available()
    # Fewer steps where they are interpreted.
    steps = 10 if on_gpu else 2
    device = "cuda" if on_gpu else "cpu"
    found = []
    with torch.inference_mode():
        comparisons = itertools.chain(
            kernel_cases(grid, steps, *inputs(shape, dtype, device, 0)),
            replay_cases(shape, dtype, device, steps),
        )
        for comparison in comparisons:
            with poisoned():
                # Interpreted programs run in one order, and slowly.
                one = compare(dtype, comparison, again=on_gpu)
            found.append((one.what, one.error, one.note))
    return found


def kernel_cases(
    grid: tuple[int, int], steps: int, q: Tensor, k: Tensor, G: Tensor, w: Tensor
) -> Iterator[Comparison]:
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
        # Without a local part, next to which a lost share of the global one looks small.
        config = NerveConfig(normalization=normalization, steps=steps, beta=1.0)
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


def replay_cases(
    shape: tuple[int, int, tuple[int, int], int], dtype: torch.dtype, device: str, steps: int
) -> Iterator[Comparison]:
    """The public walk again and again with other inputs: the later calls replay a graph."""
    config, grid = NerveConfig(steps=steps), shape[2]
    # The interpreter has no graphs.
    for call in range(REPLAYED if torch.cuda.is_available() else 1):
        q, k, G, w = inputs(shape, dtype, device, call)
        yield (
            f"walk, call {call + 1} with other inputs",
            functools.partial(random_walk, q, k, G, grid, config, head_weights=w, backend="triton"),
            functools.partial(
                true_walk,
                q.double(),
                k.double(),
                G.double(),
                grid,
                config,
                w.double(),
            ),
        )


def true_walk(q, k, prior, grid, config, head_weights=None):
    """The walk of the reference; without head weights they come from the entropies."""
    return reference.random_walk(q, k, prior, grid, config, head_weights).probabilities


def routes(normalization: str, tokens: int) -> list[tuple[str, int]]:
    """The routes that are exact, with the rows they keep: none, all, half."""
    known = [("streaming", 0), ("dense", tokens), ("dense", tokens // 2)]
    return known + [("factorized", 0)] * NORMALIZATIONS[normalization].linear
