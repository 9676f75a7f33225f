"""``python -m bench.gpu``: is every kernel right on this GPU, and how fast is it?

Checks each kernel against float64 first, then times every operation and route beside the reference,
``torch.compile`` of it, the blocked backend and torch's own attention, in one run. H = 5, D = 64,
K = 21, L = 10, r = 1. Rows are written to ``--output`` as they come; what has not been reached when
``--seconds`` are over is named there. Without a GPU the same code runs in Triton's interpreter at
small sizes, which says nothing about speed.
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
from torch.nn.functional import normalize, pad, scaled_dot_product_attention

import nerve_fast as nf
from bench import floors
from bench.cases import HEAD_DIM, HEADS, grid_of
from bench.session import (
    FAILURES,
    Machine,
    Row,
    Session,
    in_a_line,
    name_of,
    poisoned,
    relative_error,
)
from nerve_fast import NerveConfig, blocked, reference
from nerve_fast.config import NORMALIZATIONS
from nerve_fast.dispatch import tuning
from nerve_fast.kernels import affinity, entropy, walk
from nerve_fast.kernels.launch import fp8_of, interpreted

LABELS, STEPS = 21, 10
MODEST, LARGE = 16_384, 65_536
"""Tokens up to which N × N fits comfortably, and beyond which nothing is measured."""

CHECK_SECONDS = 200
"""After so long the checks that have not answered have failed."""


def inputs(
    machine: Machine,
    tokens: int,
    dtype: torch.dtype,
    labels: int = LABELS,
    heads: int = HEADS,
    head_dim: int = HEAD_DIM,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens in groups of 16 that resemble one another, a prior, and head weights."""
    groups = torch.randn(heads, -(-tokens // 16), head_dim, device=machine.device)
    groups = groups.repeat_interleave(16, 1)[:, :tokens]
    q, k = (
        (groups + 0.5 * torch.randn(heads, tokens, head_dim, device=machine.device)).to(dtype)
        for _ in range(2)
    )
    prior = (3 * torch.randn(tokens, labels, device=machine.device)).softmax(-1)
    weights = torch.rand(heads, device=machine.device).softmax(0)
    return q, k, prior, weights


def steps_on(machine: Machine) -> int:
    """Fewer where they are interpreted."""
    return STEPS if machine.on_gpu else 2


def half(machine: Machine) -> torch.dtype:
    """The 16-bit dtype that is timed; the interpreter multiplies the bits of bfloat16."""
    return torch.bfloat16 if machine.on_gpu else torch.float16


def check_kernels(session: Session) -> None:
    """Every kernel on odd shapes and all dtypes, on poisoned memory, against float64."""
    machine = session.machine
    dtypes = [torch.float32, torch.float16] + [torch.bfloat16] * machine.on_gpu
    shapes = [(5, 64, (37, 41), 21), (1, 40, (7, 9), 1), (8, 160, (13, 29), 171)]
    if not machine.on_gpu:
        shapes = [(2, 24, (5, 7), 3)]
    for (dtype, (heads, head_dim, grid, labels)), errors in checked(
        list(itertools.product(dtypes, shapes)), machine.on_gpu
    ):
        for what, error, note in errors:
            shape = [heads, grid[0] * grid[1], head_dim, labels]
            session.check(what, dtype, shape, error, note)
    session.write()
    failed = sum(not check["passed"] for check in session.checks)
    print(f"{len(session.checks)} checks against float64, {failed} failed", flush=True)


def checked(shares: list[tuple], on_gpu: bool) -> Iterator[tuple]:
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
    machine = Machine()
    heads, head_dim, grid, labels = shape
    found = []
    with torch.inference_mode():
        given = inputs(machine, grid[0] * grid[1], dtype, labels, heads, head_dim)
        for what, mine, expected in kernel_cases(machine, grid, *given):
            try:
                with poisoned():
                    out = mine()
                found.append((what, relative_error(out, expected()), ""))
            except FAILURES as error:
                found.append((what, math.nan, in_a_line(error)))
    return found


def kernel_cases(
    machine: Machine, grid: tuple[int, int], q: Tensor, k: Tensor, G: Tensor, w: Tensor
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
        config = NerveConfig(normalization=normalization, steps=steps_on(machine))
        expected = functools.partial(reference.random_walk, Q, K, g, grid, config, None)
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
            functools.partial(reference.random_walk, Q, K, g, grid, local, None),
        )


def routes(normalization: str, tokens: int) -> list[tuple[str, int]]:
    """The routes that are exact, with the rows they keep: none, all, half."""
    known = [("streaming", 0), ("dense", tokens), ("dense", tokens // 2)]
    return known + [("factorized", 0)] * (normalization in ("l1", "shift"))


def compiled(function: Callable) -> Callable:
    """``torch.compile`` of a reference; without a GPU only its tracing is tried."""
    backend = "inductor" if torch.cuda.is_available() else "eager"
    return torch.compile(function, dynamic=False, backend=backend)


def time_cosine_affinity(session: Session, tokens: int, dtype: torch.dtype) -> None:
    """``A`` in the inputs' dtype: written once, q and k read once."""
    if tokens > MODEST:
        return
    machine = session.machine
    q, k, _, w = inputs(machine, tokens, dtype)
    floor = machine.floor(floors.cosine_affinity(tokens, dtype.itemsize))
    row = functools.partial(
        session.measure, "cosine affinity", tokens=tokens, dtype=dtype, floor=floor
    )

    def expected():
        return reference.cosine_affinity(q.double(), k.double(), w.double())

    row(
        "triton",
        run=lambda: affinity.cosine_affinity(q, k, w),
        expected=expected if tokens <= 4096 else None,
    )
    row("blocked", run=lambda: blocked.cosine_affinity(q, k, w).to(dtype))
    row("reference", run=lambda: reference.cosine_affinity(q, k, w).to(dtype))
    whole = compiled(lambda q, k, w: reference.cosine_affinity(q, k, w).to(dtype))
    row("compiled", run=lambda: whole(q, k, w))

    def product(q, k, w):
        """What a careful user of PyTorch would write: one product, in the inputs' dtype."""
        q_hat = w[:, None, None] * normalize(q.float(), dim=-1)
        k_hat = normalize(k.float(), dim=-1)
        q_hat, k_hat = (x.to(dtype).transpose(0, 1).flatten(1) for x in (q_hat, k_hat))
        return q_hat @ k_hat.T

    packed = compiled(product)
    row("one product", run=lambda: packed(q, k, w))


def time_local_affinity(session: Session, tokens: int, dtype: torch.dtype) -> None:
    """The 3 × 3 windows in float32: q and k read once."""
    machine = session.machine
    q, k, _, w = inputs(machine, tokens, dtype)
    grid = grid_of(tokens)
    floor = machine.floor(floors.local_affinity(tokens, dtype.itemsize))
    row = functools.partial(
        session.measure, "local affinity", tokens=tokens, dtype=dtype, floor=floor
    )

    def expected():
        return blocked.local_affinity(q.double(), k.double(), grid, w.double(), 1, 1.0)

    row("triton", run=lambda: affinity.local_affinity(q, k, grid, w, 1, 1.0), expected=expected)
    row("blocked", run=lambda: blocked.local_affinity(q, k, grid, w, 1, 1.0))
    whole = compiled(lambda q, k, w: blocked.local_affinity(q, k, grid, w, 1, 1.0))
    row("compiled", run=lambda: whole(q, k, w))


def time_head_entropy(session: Session, tokens: int, dtype: torch.dtype) -> None:
    """Beside torch's attention on the same q and k, which does the same product and one more."""
    machine = session.machine
    q, k, _, _ = inputs(machine, tokens, dtype)
    floor = machine.floor(floors.head_entropy(tokens, dtype.itemsize))
    row = functools.partial(
        session.measure, "head entropy", tokens=tokens, dtype=dtype, floor=floor
    )
    modest = tokens <= MODEST

    def expected():
        return blocked.head_entropy(q.double(), k.double())

    row(
        "triton",
        run=lambda: entropy.head_entropy(q, k),
        expected=expected if modest else None,
    )
    row("SDPA", run=lambda: scaled_dot_product_attention(q[None], k[None], k[None]))
    if modest:
        row("blocked", run=lambda: blocked.head_entropy(q, k))
    if tokens <= 4096:
        row("reference", run=lambda: reference.head_entropy(q, k))
        whole = compiled(reference.head_entropy)
        row("compiled", run=lambda: whole(q, k))


def time_steps(session: Session, tokens: int) -> None:
    """One step of each route: the difference of two walks, so that nothing else counts."""
    machine, dtype = session.machine, half(session.machine)
    q, k, G, w = inputs(machine, tokens, dtype)
    grid = grid_of(tokens)
    ways = [
        ("softmax", "streaming", {}, floors.streaming_step(tokens)),
        ("shift", "factorized", {}, floors.factorized_step(tokens)),
    ]
    if tokens <= MODEST:
        stored = {"stored_rows": tokens}
        ways.append(("softmax", "dense", stored, floors.dense_step(tokens)))
        eight = fp8_of(machine.device)
        if eight is not None:
            stored = {**stored, "stored_dtype": eight}
            ways.append(("softmax", "dense fp8", stored, floors.dense_step(tokens, stored=1)))
    for normalization, route, options, work in ways:
        op = f"step {normalization} {route}"
        if session.late(f"{op}, N = {tokens}"):
            continue
        row = Row(op, "triton", tokens, name_of(dtype))
        seconds = []
        try:
            for steps in (1, 1 + steps_on(machine)):
                config = NerveConfig(normalization=normalization, steps=steps)
                way = {"route": route.split()[0], "most": 1.0, **options}
                run = functools.partial(walk.random_walk, q, k, G, grid, config, w, **way)
                seconds.append(machine.time(machine.graphed(run))[0])
        except FAILURES as error:
            row.note = in_a_line(error)
            session.add(row)
            continue
        machine.tidy()
        step = (seconds[1] - seconds[0]) / steps_on(machine)
        # An S of this size stays in the cache from step to step.
        floor = machine.floor(work, cached=work.moved < machine.cache_bytes)
        note = f"{work.operations / step / 1e12:.0f} TFLOP/s, {work.moved / step / 1e12:.2f} TB/s"
        row.seconds, row.floor, row.note = step, floor, note
        session.add(row)
    if tokens <= MODEST:
        shape = (1, 1, tokens, q.shape[0] * q.shape[2])
        queries, keys = (torch.randn(shape, device=machine.device).to(dtype) for _ in range(2))
        # As many columns as ours take: with 21 torch would have to copy.
        Y = pad(G.to(dtype), (0, floors.COLUMNS - LABELS))[None, None]
        session.measure(
            "step softmax streaming",
            "SDPA",
            tokens=tokens,
            dtype=dtype,
            run=lambda: scaled_dot_product_attention(queries, keys, Y, scale=20.0),
        )


def time_stage(session: Session, tokens: int, normalization: str) -> None:
    """Entropy to ``P_L``, as a user calls it."""
    machine, dtype = session.machine, half(session.machine)
    q, k, G, _ = inputs(machine, tokens, dtype)
    grid = grid_of(tokens)
    config = NerveConfig(normalization=normalization, steps=steps_on(machine))
    row = functools.partial(
        session.measure, f"stage {normalization}", tokens=tokens, dtype=dtype, graph=False
    )
    modest = tokens <= MODEST

    def expected():
        wide = (x.double() for x in (q, k, G))
        return blocked.random_walk(*wide, grid, config, None, route="streaming")

    def call(backend):
        return lambda: nf.random_walk(q, k, G, grid, config, backend=backend)

    row("triton", run=call("triton"), expected=expected if modest else None)
    if modest:
        row("blocked", run=call("blocked"))
    if tokens <= 4096:
        row("reference", run=call("reference"))
        whole = compiled(lambda q, k, G: reference.random_walk(q, k, G, grid, config, None))
        row("compiled", run=lambda: whole(q, k, G))


def time_streaming(session: Session, tokens: int, normalization: str) -> None:
    """The whole stage where ``N × N`` does not fit: how much memory it takes."""
    machine, dtype = session.machine, half(session.machine)
    q, k, G, _ = inputs(machine, tokens, dtype)
    config = NerveConfig(normalization=normalization, steps=steps_on(machine))
    way = {"backend": "triton", "route": "streaming"}
    session.measure(
        f"streaming stage {normalization}",
        "triton",
        tokens=tokens,
        dtype=dtype,
        run=lambda: nf.random_walk(q, k, G, grid_of(tokens), config, **way),
        graph=False,
    )


def time_candidates(session: Session, tokens: int) -> None:
    """Every configuration of every kernel: what :mod:`nerve_fast.kernels.configs` should prefer."""
    machine = session.machine
    shape = (HEADS, tokens, HEAD_DIM)
    timings = tuning.tune_operations(
        shape,
        LABELS,
        machine.device,
        half(machine),
        lambda run: machine.time(machine.graphed(run))[0],
    )
    for timing in timings:
        session.candidates.append(dataclasses.asdict(timing))
        print(f"{timing.key}: {timing.text()}", flush=True)
        if session.late(f"further configurations at N = {tokens}"):
            break
    session.write()


def attempt(measurement: Callable, session: Session, *arguments) -> None:
    """Measure; what goes wrong outside a row, such as inputs that do not fit, is noted."""
    try:
        measurement(session, *arguments)
    except FAILURES as error:
        where = f"{measurement.__name__}{arguments}: {in_a_line(error)}"
        print(where, flush=True)
        session.skipped.append(where)
    session.machine.tidy()


def judge(session: Session) -> None:
    """The bars of an H200: met, missed, or not measured."""

    def ratio(over: Row | None, under: Row | None) -> float | None:
        return over.seconds / under.seconds if over and under else None

    def of_floor(row: Row | None) -> float | None:
        return row.floor / row.seconds if row else None

    find, bar = session.find, session.bar
    for op, tokens in (
        ("cosine affinity", 4096),
        ("cosine affinity", MODEST),
        ("local affinity", LARGE),
    ):
        mine = find(op, "triton", tokens)
        bar(f"{op}, N = {tokens}: share of the floor", of_floor(mine), ">=", 0.6)
        rival = find(op, "compiled", tokens)
        bar(f"{op}, N = {tokens}: times torch.compile", ratio(rival, mine), ">=", 3)
    for tokens in (4096, MODEST):
        mine, rival = (find("head entropy", who, tokens) for who in ("triton", "SDPA"))
        bar(f"head entropy, N = {tokens}: times SDPA", ratio(rival, mine), ">=", 1)
    step = find("step softmax streaming", "triton", MODEST)
    rate = step and floors.streaming_step(MODEST).operations / step.seconds / 1e12
    bar(f"streaming step, N = {MODEST}: TFLOP/s", rate, ">=", 400)
    for tokens in (4096, MODEST):
        step = find("step softmax dense", "triton", tokens)
        bar(f"dense step, N = {tokens}: share of the bandwidth", of_floor(step), ">=", 0.7)
    mine, rival = (find("stage softmax", who, 4096) for who in ("triton", "reference"))
    bar("whole stage, N = 4096: µs", mine and 1e6 * mine.seconds, "<=", 150)
    bar("whole stage, N = 4096: times the reference", ratio(rival, mine), ">=", 20)
    for normalization in NORMALIZATIONS:
        mine = find(f"streaming stage {normalization}", "triton", LARGE)
        taken = mine and mine.peak_memory and mine.peak_memory / 1e9
        bar(f"{normalization}, N = {LARGE}, streaming: GB beyond the inputs", taken, "<=", 2)
    session.write()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, help="default: bench/results/DEVICE.json")
    parser.add_argument("--seconds", type=float, default=420, help="default: 420")
    parser.add_argument("--tokens", type=int, nargs="+", help="default: 1024 4096 16384 65536")
    options = parser.parse_args(arguments)
    machine = Machine()
    if not machine.on_gpu and not interpreted():
        print(
            "no GPU that torch can use; TRITON_INTERPRET=1 tries the code on the CPU, without "
            "saying anything about speed",
            file=sys.stderr,
        )
        return 2
    if not machine.on_gpu:
        print("interpreted on the CPU: the times below mean nothing")
    sizes = options.tokens or ([1024, 4096, MODEST, LARGE] if machine.on_gpu else [64])
    output = options.output or Path(__file__).parent / "results" / f"{machine.slug}.json"
    torch.manual_seed(0)
    problem = {"H": HEADS, "D": HEAD_DIM, "K": LABELS, "L": STEPS, "r": 1}
    session = Session(machine, output, options.seconds, problem)
    start = time.monotonic()
    with torch.inference_mode():
        check_kernels(session)
        machine.measure_ceilings()
        if machine.on_gpu:
            print(
                f"ceilings: {machine.bandwidth / 1e12:.2f} TB/s, in cache "
                f"{machine.cache_bandwidth / 1e12:.2f} TB/s, "
                f"{machine.matrix_rate / 1e12:.0f} TFLOP/s",
                flush=True,
            )
        for tokens in sizes:
            for normalization in ("softmax", "shift"):
                attempt(time_stage, session, tokens, normalization)
            attempt(time_steps, session, tokens)
        for tokens in sizes:
            wide = [torch.float16, torch.float32] if tokens == 4096 and machine.on_gpu else []
            for dtype in (half(machine), *wide):
                attempt(time_cosine_affinity, session, tokens, dtype)
                attempt(time_local_affinity, session, tokens, dtype)
                attempt(time_head_entropy, session, tokens, dtype)
        for normalization in NORMALIZATIONS:
            attempt(time_streaming, session, sizes[-1], normalization)
        attempt(time_candidates, session, sizes[len(sizes) // 2])
    judge(session)
    wrong = sum(not check["passed"] for check in session.checks)
    wrong += sum(row.note.startswith("WRONG") for row in session.rows)
    print(
        f"{time.monotonic() - start:.0f} s; {len(session.skipped)} left out for want of time; "
        f"{wrong} wrong; written to {output}"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
