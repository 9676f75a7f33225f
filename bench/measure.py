"""Carrying out one case: first is it right, then how much memory does it take, then how long.

On a CPU the first two are answered in a process of its own.
"""

import contextlib
import ctypes
import dataclasses
import gc
import importlib.util
import itertools
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nerve_fast import plan
from nerve_fast.bench.case import Case, Setting
from nerve_fast.bench.isolated import in_a_line, isolated
from nerve_fast.bench.machine import Machine, Run, interpreted, quantiles, rounds_for, seconds_of

FEW_TOKENS = 256
"""A run of so many goes first, so that the libraries' own set-up is there."""

LONG_SECONDS = 1.0
"""What takes longer is timed once, where it was checked."""

TOO_LONG_SECONDS = 20.0
"""What takes longer is run once in all, and what it allocates is not learnt."""

# It tells on standard error of every profile.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

COMPILE_CACHE = "TORCHINDUCTOR_CACHE_DIR"

STEP = "nerve_fast: "
"""How the pipeline's steps begin in a trace."""


@dataclasses.dataclass
class Row:
    """What was found.

    Attributes:
        operation, contender: what, and by whom.
        setting: the fields of :class:`~nerve_fast.bench.case.Setting`.
        ours, route, taken: it is a part of this package; one of its ways through the walk; the way
            that ``auto`` takes.
        replayed: on a GPU, as a graph.
        seconds: median of the rounds; ``low`` and ``high`` are the 20th and 80th percentile.
        first_seconds: of the first call, compilation and tuning included.
        floor: the larger of operations over the rate of products and bytes over the bandwidth, for
            the best way known to do it, of which are ``operations`` and ``moved``.
        allocated: peak of bytes that torch allocated beyond the inputs; not measured of what takes
            very long.
        resident: peak of bytes the process had beyond the inputs (on a GPU: torch reserved).
        process: peak of bytes the process had in all.
        error: relative to float64, on ``error_tokens`` tokens.
        parts: seconds of the steps that it names to ``torch.profiler``, from a run of their own.
        note: why there is no time, or what a reader should know.
    """

    operation: str
    contender: str
    setting: dict
    ours: bool = False
    route: bool = False
    taken: bool = False
    compiled: bool = False
    replayed: bool = False
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    first_seconds: float | None = None
    floor: float | None = None
    operations: float | None = None
    moved: float | None = None
    allocated: int | None = None
    resident: int | None = None
    process: int | None = None
    error: float | None = None
    error_tokens: int | None = None
    bound: float | None = None
    parts: dict[str, float] | None = None
    note: str = ""

    @property
    def failed(self) -> bool:
        """It was wrong, or something kept it from being measured that should not."""
        return self.seconds is None and not self.note.startswith("absent")


@dataclasses.dataclass
class Examined:
    """What the first runs of a case gave; ``seconds`` is of the last whole one."""

    error: float
    first_seconds: float
    seconds: float
    allocated: int | None
    resident: int | None
    process: int | None
    parts: dict[str, float] | None


class Scratch:
    """A run's own folder: results in float64, each computed once, and the cache of torch.compile.

    That starts empty within the context, so that first calls are first calls. Kernels keep theirs:
    what it costs to compile them is a row of its own (:mod:`nerve_fast.bench.bench_startup`).
    """

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="nerve-fast-bench-")
        self._cache = os.environ.get(COMPILE_CACHE)
        self._known: dict[tuple, Path] = {}

    def __enter__(self):
        os.environ[COMPILE_CACHE] = str(Path(self._folder.name) / "compiled")
        return self

    def __exit__(self, *error):
        del os.environ[COMPILE_CACHE]
        if self._cache is not None:
            os.environ[COMPILE_CACHE] = self._cache
        self._folder.cleanup()

    def truth(self, case: Case) -> Path:
        """The file of what ``case`` should give at :attr:`Case.checked`."""
        truth, setting = case.contender.truth or case.operation.truth, case.checked
        key = (case.operation.name, truth, setting)
        if key not in self._known:
            path = Path(self._folder.name) / f"{len(self._known)}.pt"
            torch.save(truth(setting, *case.operation.inputs(setting, 0)).cpu(), path)
            self._known[key] = path
        return self._known[key]


def measure(
    case: Case,
    machine: Machine,
    scratch: Scratch,
    clock: Callable[[Run, int], list[float]] | None = None,
) -> Row:
    """Check, then time; what is wrong is not timed.

    Args:
        case: what.
        machine: where; its ceilings have been measured.
        scratch: of this run.
        clock: ``clock(run, rounds)`` times each round; ``None`` is the machine's own. It is not
            asked about what takes longer than :data:`LONG_SECONDS`.
    """
    operation, contender, setting = case.operation, case.contender, case.setting
    row = Row(
        operation.name,
        contender.name,
        dataclasses.asdict(setting),
        ours=contender.ours,
        route=contender.route is not None,
        compiled=contender.compiled,
        bound=case.bound,
        note=contender.note,
    )
    least = machine.least(operation.floors(setting), setting.dtype)
    # Not of what computes something else.
    if least and contender.truth is None:
        row.floor, row.operations, row.moved = least
    if contender.needs and importlib.util.find_spec(contender.needs) is None:
        row.note = f"absent: {contender.needs} is not installed"
        return row
    try:
        if contender.route:
            row.taken = contender.route == taken(setting)
        truth = scratch.truth(case)
        if machine.on_gpu or interpreted():
            found = examine(case, truth)
        else:
            names = (operation.name, contender.name, setting)
            found = isolated(_examine_named, *names, truth)
        row.error_tokens = case.checked.tokens
        row.error = found.error if math.isfinite(found.error) else None
        if not found.error <= case.bound:
            row.note = f"WRONG: error {found.error:.1e} above {case.bound:g}, not timed"
            return row
        row.first_seconds = found.first_seconds
        row.allocated, row.resident = found.allocated, found.resident
        row.process, row.parts = found.process, found.parts
        seconds, row.replayed = _time(case, machine, found.seconds, clock)
        row.rounds = len(seconds)
        row.seconds, row.low, row.high = quantiles(seconds)
        machine.tidy()
    except Exception as error:  # of whatever library: the others go on, and the row says it
        row.note = in_a_line(error)
    return row


@torch.inference_mode()
def _time(case: Case, machine: Machine, expected: float, clock) -> tuple[list[float], bool]:
    """Seconds of each round of a case that takes about ``expected``; whether it was replayed."""
    if expected > LONG_SECONDS and not machine.on_gpu:
        return [expected], False
    copies = machine.copies(case.operation.floors(case.setting), case.setting.dtype)
    runs = [case.made(case.setting, seed) for seed in range(copies)]
    replayed = machine.on_gpu and case.contender.graph
    if replayed:
        graphs = [machine.graphed(run) for run in runs]
        replayed = None not in graphs
        runs = graphs if replayed else runs
    turn = itertools.cycle(runs)
    # Warm: each set of inputs has been seen.
    for run in runs:
        run()
    seconds = (clock or machine.clock)(lambda: next(turn)(), rounds_for(expected))
    return seconds, replayed


def examine(case: Case, truth: Path) -> Examined:
    """Run a case, compare it, and see how much memory it takes and about how long.

    Args:
        case: what.
        truth: file with the float64 result at :attr:`Case.checked`.
    """
    with torch.inference_mode():
        if not case.contender.compiled:
            few = case.setting.replace(tokens=min(case.setting.tokens, FEW_TOKENS))
            case.made(few)()
        run = case.made(case.setting)
        outs: list[Tensor] = []

        def keep(run=run):
            outs[:] = [run()]
            if memory.on_gpu:
                torch.cuda.synchronize()

        memory = Memory(case.setting.device)
        first = seconds = seconds_of(keep)
        resident, process = memory.peak()
        # On a GPU of the first call: later ones may replay a graph that holds its memory.
        allocated = memory.allocated_on_gpu()
        if case.contender.compiled:
            # The compiler's memory is not the operation's.
            outs.clear()
            memory = Memory(case.setting.device)
            seconds = seconds_of(keep)
            resident, process = memory.peak()
        elif LONG_SECONDS < seconds < TOO_LONG_SECONDS and not case.operation.steady:
            seconds = seconds_of(keep)
        error = 0.0
        if case.checked == case.setting:
            error = relative_error(outs.pop(), truth)
        outs.clear()
        parts = None
        if case.operation.parts:
            parts = steps_of(profiled(run, memory.on_gpu))
        if allocated is None and seconds < TOO_LONG_SECONDS:
            if case.operation.steady and seconds > LONG_SECONDS:
                run = case.made(case.setting.replace(steps=min(case.setting.steps, 2)))
            allocated = allocated_on_cpu(run)
        if case.checked != case.setting:
            error = relative_error(case.made(case.checked)(), truth)
    return Examined(error, first, seconds, allocated, resident, process, parts)


def _examine_named(operation: str, contender: str, setting: Setting, *arguments) -> Examined:
    """:func:`examine` of the case of that name: cases hold functions that do not travel."""
    from nerve_fast.bench.suite import find

    return examine(find(operation, contender, setting), *arguments)


class Memory:
    """Peak memory from now on, beyond what there is now."""

    def __init__(self, device: str):
        self.on_gpu = device == "cuda"
        gc.collect()
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_reserved()
            self.allocated_before = torch.cuda.memory_allocated()
        else:
            # What the heap holds of things that are gone would be used again unseen.
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL("libc.so.6").malloc_trim(0)
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
            self.before = _status("VmRSS")

    def peak(self) -> tuple[int | None, int | None]:
        """Bytes resident beyond those before, and in all; on a GPU those that torch reserved."""
        if self.on_gpu:
            torch.cuda.synchronize()
            most = torch.cuda.max_memory_reserved()
        else:
            most = _status("VmHWM")
        return (None, None) if most is None else (most - self.before, most)

    def allocated_on_gpu(self) -> int | None:
        """Bytes that torch allocated on a GPU beyond those before."""
        if not self.on_gpu:
            return None
        return torch.cuda.max_memory_allocated() - self.allocated_before


def allocated_on_cpu(run: Run) -> int:
    """Peak of bytes that ``run`` has torch allocate on the CPU, from a run of its own."""
    profile = profiled(run, profile_memory=True)
    events = profile.profiler.kineto_results.events()
    events = [event for event in events if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))


def profiled(run: Run, on_gpu: bool = False, **options) -> torch.profiler.profile:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, **options) as profile:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    return profile


def steps_of(profile: torch.profiler.profile) -> dict[str, float]:
    """Seconds of each step whose name begins with :data:`STEP`."""
    return {
        event.key.removeprefix(STEP): max(event.cpu_time_total, event.device_time_total) / 1e6
        for event in profile.key_averages()
        if event.key.startswith(STEP)
    }


def _status(key: str) -> int | None:
    """A figure of this process in bytes, where the system tells it (Linux)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return 1024 * int(line.split()[1])
    return None


def taken(setting: Setting) -> tuple[str, str]:
    """The backend and route that ``auto`` takes, head weights given."""
    chosen = plan(
        (setting.heads, setting.tokens, setting.head_dim),
        setting.labels,
        config=setting.config(),
        device=setting.device,
        dtype=setting.torch_dtype,
        weights_given=True,
    )
    return chosen.backend, chosen.route


def relative_error(out: Tensor, truth: Path | Tensor) -> float:
    """``‖out − truth‖ / ‖truth‖``; NaN where anything is."""
    expected = truth if isinstance(truth, Tensor) else torch.load(truth, mmap=True)
    expected = expected.to(out.device)
    return ((out.double() - expected).norm() / expected.norm()).item()
