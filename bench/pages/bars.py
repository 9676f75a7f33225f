"""The speed and memory that the package promises, judged from the rows of a run."""

import dataclasses
from collections.abc import Callable, Iterator

from nerve_fast.bench.harness import floors
from nerve_fast.bench.harness.case import Setting
from nerve_fast.bench.harness.results import problems, rows_of
from nerve_fast.bench.harness.row import Row
from nerve_fast.bench.harness.words import in_words
from nerve_fast.normalization import NORMALIZATIONS

BF16, FP16 = "bfloat16", "float16"
N, LARGE = 16_384, 65_536


@dataclasses.dataclass(frozen=True)
class Judged:
    """One bar: ``met`` is ``None`` where it was not measured."""

    what: str
    value: float | None
    relation: str
    bar: float
    met: bool | None

    def __str__(self) -> str:
        verdict = {None: "not measured", True: "met", False: "MISSED"}[self.met]
        figure = "" if self.value is None else f"{self.value:.3g} "
        return f"{verdict:12} {self.what}: {figure}(bar {self.relation} {self.bar:g})"


class Table:
    """The rows of a run, by what they are of."""

    def __init__(self, document: dict):
        self.rows = rows_of(document)
        self.ceilings = document["ceilings"]

    def find(self, operation: str, contender: str, tokens: int, **setting) -> Row | None:
        """A row that was timed; fields that ``setting`` does not name have their defaults."""
        device = self.rows[0].setting["device"] if self.rows else "cpu"
        wanted = dataclasses.asdict(Setting(tokens, device=device, **setting))
        for row in self.rows:
            named = (row.operation, row.contender) == (operation, contender)
            if named and row.seconds and row.setting == wanted:
                return row
        return None


def judge(document: dict) -> list[Judged]:
    """The bars of the kind of machine that the results are of."""
    kind = document["machine"]["kind"]
    table = Table(document)
    judged = []
    for what, value, relation, bar in (gpu_bars if kind == "cuda" else cpu_bars)(table):
        met = None
        if value is not None:
            met = value >= bar if relation == ">=" else value <= bar
        judged.append(Judged(what, value, relation, bar, met))
    return judged


def quotient(over: Row | None, under: Row | None, of: Callable = lambda row: row.seconds):
    """``of(over) / of(under)``, or ``None`` where one was not measured."""
    if over is None or under is None or of(over) is None or not of(under):
        return None
    return of(over) / of(under)


def against(who: str, other: Row | None, mine: Row | None) -> str:
    """Name an opponent; one that was timed cold, as older results have it, beside a warm one."""

    def cold(row):
        return row.rounds == 1 and row.seconds == row.first_seconds

    uneven = other is not None and mine is not None and cold(other) and not cold(mine)
    return f"{who}'s first run" if uneven else who


def resident(row: Row) -> int | None:
    return row.resident


def gigabytes(row: Row | None, of: Callable) -> float | None:
    return of(row) / 1e9 if row and of(row) is not None else None


def cpu_bars(table: Table) -> Iterator[tuple]:
    find = table.find

    def against_reference(what, new, old, times, share):
        other = against("the reference", old, new)
        yield f"{what}: times faster than {other}", quotient(old, new), ">=", times
        yield f"{what}: share of its memory", quotient(new, old, resident), "<=", share

    for normalization, route, dtype, times, share in (
        ("shift", "factorized", "float32", 20, 0.05),
        ("l1", "factorized", "float32", 3, 0.05),
        ("l1", "factorized", BF16, 5, 0.05),
        ("softmax", "dense", BF16, 2.5, 0.5),
        ("softmax", "streaming", BF16, 1.5, 0.1),
        ("softmax", "streaming", "float32", 0.25, 0.1),
        ("relu", "streaming", BF16, 1.5, 0.1),
        ("relu", "streaming", "float32", 0.25, 0.1),
    ):
        way = {"normalization": normalization, "dtype": dtype}
        new = find("walk", f"blocked {route}", N, **way)
        old = find("walk", "reference", N, normalization=normalization)
        what = f"{normalization}, {route}, {dtype}, N = {N:,}"
        yield from against_reference(what, new, old, times, share)

    small, large, huge = (
        find("walk", "blocked factorized", tokens, normalization="shift")
        for tokens in (N, 262_144, 1 << 20)
    )
    ratio = quotient(large, small)
    yield f"shift, N = 262,144: times the time of {N:,}", ratio, "<=", 20
    for row, tokens, most in ((large, "262,144", 2.5), (huge, "1,048,576", 10)):
        yield f"shift, N = {tokens}: GB resident", gigabytes(row, lambda r: r.process), "<=", most

    new, old = (
        find("head entropy", who, 4096, normalization="") for who in ("blocked", "reference")
    )
    yield from against_reference("head entropy, N = 4,096", new, old, 2, 0.05)
    new, old = (find("local walk", who, 65_536) for who in ("blocked", "unfold"))
    other = against("unfold", old, new)
    what = f"local affinity and 10 steps, N = 65,536: times faster than {other}"
    yield what, quotient(old, new), ">=", 10
    for dtype in ("float32", BF16):
        new, old = (find("walk", who, 4096, dtype=dtype) for who in ("blocked streaming", "SDPA"))
        other = against("SDPA", old, new)
        what = f"softmax, streaming, {dtype}, N = 4,096: times faster than {other}"
        yield what, quotient(old, new), ">=", 1
    yield from regrets(table)


def regrets(table: Table) -> Iterator[tuple]:
    """The time of the route that ``auto`` takes, over that of the fastest route measured."""
    for rows in problems(table.rows):
        timed = [row for row in rows if row.route and row.seconds]
        taken = [row for row in timed if row.taken]
        if rows[0].operation == "walk" and taken and len(timed) > 1:
            best = min(row.seconds for row in timed)
            what = f"auto takes {taken[0].contender}, {in_words(rows[0].setting)}"
            yield f"{what}: of the best time", taken[0].seconds / best, "<=", 1.1


def gpu_bars(table: Table) -> Iterator[tuple]:
    for dtype in (BF16, FP16):
        for what, *judged in gpu_bars_of(table, dtype):
            yield f"{what}, {dtype}", *judged
    yield from regrets(table)


def gpu_bars_of(table: Table, dtype: str) -> Iterator[tuple]:
    def find(operation, contender, tokens, **setting):
        return table.find(operation, contender, tokens, dtype=dtype, **setting)

    def of_floor(row):
        return row.floor / row.seconds if row and row.floor else None

    for operation, tokens in (
        ("cosine affinity", 4096),
        ("cosine affinity", N),
        ("local affinity", LARGE),
    ):
        mine = find(operation, "triton", tokens, normalization="")
        yield f"{operation}, N = {tokens:,}: share of the floor", of_floor(mine), ">=", 0.6
        rival = find(operation, "torch.compile", tokens, normalization="")
        what = f"{operation}, N = {tokens:,}: times faster than torch.compile"
        yield what, quotient(rival, mine), ">=", 3
    for tokens in (4096, N, LARGE):
        mine, rival = (
            find("head entropy", who, tokens, normalization="") for who in ("triton", "SDPA")
        )
        what = f"head entropy, N = {tokens:,}: times faster than SDPA"
        yield what, quotient(rival, mine), ">=", 1

    for tokens in (N, LARGE):
        step = step_seconds(find, "triton streaming", tokens)
        rate = step and floors.streaming_step(tokens).operations / step / 1e12
        yield f"streaming step, N = {tokens:,}: TFLOP/s", rate, ">=", 400
    for tokens in (4096, N):
        step, work = step_seconds(find, "triton dense", tokens), floors.dense_step(tokens)
        # An S of 4096 tokens stays in the cache from step to step.
        bandwidth = table.ceilings["cache_bandwidth" if tokens == 4096 else "bandwidth"]
        share = step and bandwidth and work.moved / step / bandwidth
        yield f"dense step, N = {tokens:,}: share of the bandwidth", share, ">=", 0.7

    mine, rival = (find("graph stage", who, 4096) for who in ("triton auto", "reference"))
    yield "whole stage, N = 4,096: µs", mine and 1e6 * mine.seconds, "<=", 150
    what = "whole stage, N = 4,096: times faster than the reference"
    yield what, quotient(rival, mine), ">=", 20
    for normalization in NORMALIZATIONS:
        mine = find("walk", "triton streaming", LARGE, normalization=normalization)
        taken = gigabytes(mine, lambda row: row.allocated)
        yield f"{normalization}, streaming, N = {LARGE:,}: GB beyond the inputs", taken, "<=", 2


def asked_for() -> list[tuple[str, str, Setting]]:
    """The rows that a GPU's bars are judged from: operation, contender and setting."""
    found = []

    class Asking(Table):
        def find(self, operation, contender, tokens, **setting):
            found.append((operation, contender, Setting(tokens, device="cuda", **setting)))

    nothing = {"rows": [], "ceilings": {"bandwidth": None, "cache_bandwidth": None}}
    list(gpu_bars(Asking(nothing)))
    return list(dict.fromkeys(found))


def step_seconds(find: Callable, contender: str, tokens: int) -> float | None:
    """One step: the difference of walks of 50 steps and of one, so that nothing else counts."""
    long, short = (find("walk", contender, tokens, steps=steps) for steps in (50, 1))
    return (long.seconds - short.seconds) / 49 if long and short else None
