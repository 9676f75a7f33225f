"""Rows of measurements on one machine: its clock and ceilings, and a file that is always whole."""

import contextlib
import dataclasses
import datetime
import functools
import json
import math
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton
from torch import Tensor

from bench.floors import Floor
from nerve_fast.files import written_whole
from nerve_fast.kernels.launch import interpreted

BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SCHEMA = 1


@dataclasses.dataclass
class Row:
    """One measurement.

    Attributes:
        op, backend: what, and by whom.
        seconds: median; ``low`` and ``high`` are the 20th and 80th percentile.
        floor: the larger of operations over the matrix rate and bytes over the bandwidth.
        peak_memory: bytes allocated beyond the inputs.
        error: relative to float64, or ``None`` where it was not computed at this size.
    """

    op: str
    backend: str
    tokens: int
    dtype: str
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    peak_memory: int | None = None
    error: float | None = None
    note: str = ""


class Machine:
    """The device, its clock and its ceilings."""

    def __init__(self):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.on_gpu = self.device.type == "cuda"
        self.bandwidth = self.cache_bandwidth = self.matrix_rate = None
        self.cache_bytes = 0
        if self.on_gpu:
            self.cache_bytes = torch.cuda.get_device_properties(self.device).L2_cache_size

    def tidy(self) -> None:
        """Give memory back that only the allocator still holds."""
        if self.on_gpu:
            torch.cuda.empty_cache()

    @property
    def slug(self) -> str:
        """The device's name as that of a file."""
        return re.sub(r"\W+", "-", self.describe()["device"])

    def describe(self) -> dict:
        """What the figures belong to."""
        name = torch.cuda.get_device_name() if self.on_gpu else platform.processor() or "CPU"
        return {
            "device": name,
            "interpreted": interpreted(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda or torch.version.hip,
            "python": platform.python_version(),
            "commit": commit(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }

    def measure_ceilings(self) -> None:
        """Bandwidth of memory and of the cache, bytes read and written; rate of bf16 products."""
        if not self.on_gpu:
            return
        large = torch.ones(1 << 29, device=self.device)
        target = torch.empty_like(large)
        self.bandwidth = 2 * large.nbytes / self.time(lambda: target.copy_(large))[0]
        # As much as a stored S of 4096 tokens: it stays in the cache. Written and read, and read.
        few, half = large[: 1 << 23], large[: 1 << 22]
        written = target[: 1 << 22]
        copies = self.graphed(lambda: [written.copy_(half) for _ in range(20)])
        sums = self.graphed(lambda: [few.sum() for _ in range(20)])
        self.cache_bandwidth = max(
            20 * 2 * half.nbytes / self.time(copies)[0], 20 * few.nbytes / self.time(sums)[0]
        )
        a, b = (torch.randn(8192, 8192, device=self.device).bfloat16() for _ in range(2))
        self.matrix_rate = 2 * 8192**3 / self.time(lambda: a @ b)[0]

    def time(self, run: Callable[[], object]) -> tuple[float, float, float]:
        """Median, 20th and 80th percentile of the seconds that ``run`` takes, warm."""
        if self.on_gpu:
            quantiles = triton.testing.do_bench(run, 10, 80, quantiles=[0.5, 0.2, 0.8])
            return tuple(value / 1e3 for value in quantiles)
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start,) * 3

    def graphed(self, run: Callable[[], object]) -> Callable[[], object]:
        """``run`` as the replay of a graph, so that Python's launches are not timed."""
        if not self.on_gpu:
            return run
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def peak(self, run: Callable[[], object]) -> int | None:
        """Bytes that ``run`` allocates beyond what is there."""
        if not self.on_gpu:
            return None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def floor(self, work: Floor, cached: bool = False) -> float | None:
        """Seconds that no version can be faster than; an interpreter has none."""
        if not self.on_gpu:
            return None
        bandwidth = self.cache_bandwidth if cached else self.bandwidth
        return work.seconds(self.matrix_rate, bandwidth)


FAILURES = (RuntimeError, triton.TritonError)
"""What a measurement may end with, out of memory among them: the others go on."""


def in_a_line(error: BaseException) -> str:
    """The first line of what an error says, with its name."""
    said = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {said[:200]}"


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Within the block ``Tensor.new_empty``, from which kernels write, gives NaN."""
    new_empty = torch.Tensor.new_empty

    def poison(self, *shape, **options):
        out = new_empty(self, *shape, **options)
        if not out.is_floating_point():
            return out.fill_(77)
        if out.dtype.itemsize == 1:
            out.view(torch.uint8).fill_(0x7F)
            return out
        return out.fill_(math.nan)

    torch.Tensor.new_empty = poison
    try:
        yield
    finally:
        torch.Tensor.new_empty = new_empty


def commit() -> str:
    """Of the checkout, with a mark where it was changed; empty where there is no git."""
    try:
        run = functools.partial(
            subprocess.run, capture_output=True, text=True, cwd=Path(__file__).parent, check=True
        )
        head = run(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
        return head + "+" * bool(run(["git", "status", "--porcelain"]).stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return ""


class Session:
    """Rows as they come, on the screen and in a file that is always whole."""

    def __init__(self, machine: Machine, output: Path, seconds: float, problem: dict):
        self.problem = problem
        self.machine, self.output = machine, output
        output.parent.mkdir(parents=True, exist_ok=True)
        self.deadline = time.monotonic() + seconds
        self.rows: list[Row] = []
        self.checks: list[dict] = []
        self.candidates: list[dict] = []
        self.skipped: list[str] = []
        self.bars: list[dict] = []

    def write(self) -> None:
        result = {
            "schema": SCHEMA,
            "machine": self.machine.describe(),
            "ceilings": {
                "bandwidth": self.machine.bandwidth,
                "cache_bandwidth": self.machine.cache_bandwidth,
                "matrix_rate": self.machine.matrix_rate,
            },
            "problem": self.problem,
            "checks": self.checks,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "candidates": self.candidates,
            "bars": self.bars,
            "skipped": self.skipped,
        }
        with written_whole(self.output) as path:
            path.write_text(json.dumps(result, indent=1) + "\n")

    def late(self, what: str) -> bool:
        """Whether there is no time left for ``what``; if so it is noted."""
        if time.monotonic() < self.deadline:
            return False
        self.skipped.append(what)
        return True

    def measure(
        self,
        op: str,
        backend: str,
        *,
        tokens: int,
        dtype: torch.dtype,
        run: Callable[[], Tensor],
        expected: Callable[[], Tensor] | None = None,
        floor: float | None = None,
        graph: bool = True,
    ) -> Row | None:
        """Check, then time; a wrong result is not timed."""
        if self.late(f"{op}, {backend}, N = {tokens}, {name_of(dtype)}"):
            return None
        row = Row(op, backend, tokens, name_of(dtype), floor=floor)
        try:
            out = run()
            wrong = False
            if expected is not None:
                error = relative_error(out, expected())
                row.error = error if math.isfinite(error) else None
                wrong = not error <= BOUNDS[dtype]
            del out
            if wrong:
                row.note = f"WRONG: error {error:.1e} above {BOUNDS[dtype]:g}, not timed"
            else:
                row.peak_memory = self.machine.peak(run)
                timed = self.machine.graphed(run) if graph else run
                row.seconds, row.low, row.high = self.machine.time(timed)
        except FAILURES as error:
            row.note = in_a_line(error)
        self.machine.tidy()
        self.add(row)
        return row

    def add(self, row: Row) -> None:
        """Keep and print a row."""
        self.rows.append(row)
        self.write()
        took = "-" if row.seconds is None else f"{1e6 * row.seconds:.1f} µs"
        share = error = ""
        if row.seconds and row.floor:
            share = f"{row.floor / row.seconds:.0%} of the floor"
        if row.error is not None:
            error = f"error {row.error:.1e}"
        print(
            f"{row.op:28} {row.backend:10} {row.tokens:7} {row.dtype:9} {took:>12} {share:17} "
            f"{error:14} {row.note}".rstrip(),
            flush=True,
        )

    def check(
        self, what: str, dtype: torch.dtype, shape: list[int], error: float, note: str = ""
    ) -> None:
        """Keep one comparison with float64; a failure is printed. NaN fails, and has no JSON."""
        passed = error <= BOUNDS[dtype]
        kept = error if math.isfinite(error) else None
        kind = {"what": what, "dtype": name_of(dtype), "shape": shape}
        self.checks.append({**kind, "error": kept, "passed": passed, "note": note})
        if not passed:
            kind = f"{name_of(dtype)}, (H, N, D, K) = {shape}"
            print(f"WRONG {what}, {kind}: error {error} {note}".rstrip())

    def bar(self, what: str, value: float | None, relation: str, wanted: float) -> None:
        """Keep and print whether a bar is met."""
        met = None
        if value is not None:
            met = value >= wanted if relation == ">=" else value <= wanted
        bar = f"{relation} {wanted:g}"
        self.bars.append({"what": what, "value": value, "bar": bar, "met": met})
        verdict = {None: "not measured", True: "met", False: "MISSED"}[met]
        figure = "" if value is None else f"{value:.3g} "
        print(f"{verdict:12} {what}: {figure}(bar {bar})")

    def find(self, op: str, backend: str, tokens: int, dtype: str = "bfloat16") -> Row | None:
        """A row that was timed."""
        for row in self.rows:
            wanted = (op, backend, tokens, dtype)
            if (row.op, row.backend, row.tokens, row.dtype) == wanted and row.seconds:
                return row
        return None


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def relative_error(out: Tensor, expected: Tensor) -> float:
    """``‖out − expected‖ / ‖expected‖``; NaN where anything is."""
    return ((out.double() - expected).norm() / expected.norm()).item()
