"""Measuring one case: first its error, then its memory, then its time.

On a CPU the first two are measured in a separate process.
"""

import dataclasses
import functools
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
from nerve_fast.bench.harness.case import Case, Setting
from nerve_fast.bench.harness.examine import LONG_SECONDS, examine, examine_named
from nerve_fast.bench.harness.isolated import in_a_line, isolated
from nerve_fast.bench.harness.machine import Machine, Run, interpreted, quantiles, rounds_for
from nerve_fast.bench.harness.row import Row
from nerve_fast.numerics import relative_error

OTHER_SEED = 1000
"""Of the inputs that a replay is checked with: none that were recorded."""

COMPILE_CACHE = "TORCHINDUCTOR_CACHE_DIR"


class Scratch:
    """The temporary folder of a run: expected results in float64 and the cache of torch.compile.

    Each expected result is computed once. The cache starts empty within the context, so that first
    calls compile. Kernels keep their cache: their compilation is measured separately, by
    :mod:`nerve_fast.bench.cases.startup`.
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
        """The file with the expected result of ``case`` at :attr:`Case.checked`."""
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
    """Check a case, then time it; a wrong result is not timed.

    Args:
        case: that is measured.
        machine: that measures it; its ceilings have been measured.
        scratch: the folder of this run.
        clock: ``clock(run, rounds)`` times each round; ``None`` is the machine's own. Cases
            that take longer than :data:`LONG_SECONDS` on a CPU do not use it.
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
            found = isolated(examine_named, *names, truth)
        row.error_tokens = case.checked.tokens
        row.error = found.error if math.isfinite(found.error) else None
        if not found.error <= case.bound:
            row.note = f"WRONG: error {found.error:.1e} above {case.bound:g}, not timed"
            return row
        row.first_seconds = found.first_seconds
        row.allocated, row.resident = found.allocated, found.resident
        row.process, row.parts = found.process, found.parts
        row.attention = found.attention
        seconds = _time(case, machine, found.seconds, clock, row)
        row.rounds = len(seconds)
        row.seconds, row.low, row.high = quantiles(seconds)
        machine.tidy()
    except WrongReplay as error:
        row.note = f"WRONG: {error}, not timed"
    except Exception as error:  # of whatever library: the others go on, and the row says it
        row.note = in_a_line(error)
    return row


class WrongReplay(Exception):
    """A recorded graph that does not follow its inputs."""


@torch.inference_mode()
def _time(case: Case, machine: Machine, expected: float, clock, row: Row) -> list[float]:
    """Seconds of each round of a case that takes about ``expected``.

    ``row`` is told whether a graph was replayed and how long Python takes.

    Raises:
        WrongReplay: other inputs do not give another result.
    """
    if expected > LONG_SECONDS and not machine.on_gpu:
        return [expected]
    copies = machine.copies(case.operation.floors(case.setting), case.setting.dtype)
    inputs = [case.operation.inputs(case.setting, seed) for seed in range(copies)]
    runs = [case.contender.prepare(case.setting, *given) for given in inputs]
    if machine.on_gpu and case.contender.graph:
        graphs = [machine.graphed(run) for run in runs]
        row.replayed = None not in graphs
        runs = graphs if row.replayed else runs
    if row.replayed and case.contender.ours:
        check_replay(case, runs[0], inputs[0])
    turn = itertools.cycle(runs)
    # Warm: each set of inputs has been seen.
    for run in runs:
        run()
    row.python = machine.python_seconds(runs[0])
    clock = clock or functools.partial(machine.clock, replayed=row.replayed)
    return clock(lambda: next(turn)(), rounds_for(expected))


def check_replay(case: Case, replay: Run, inputs: tuple) -> None:
    """Write other inputs where a graph reads its own, and compare what it gives then.

    Args:
        case: of the graph.
        replay: gives the graph's output.
        inputs: that it was recorded with; they are as they were afterwards. Those that are no
            tensors, such as a given graph, are left alone.

    Raises:
        WrongReplay: the result is not that of the other inputs.
    """
    others = case.operation.inputs(case.setting, OTHER_SEED)
    pairs = [
        (mine, other)
        for mine, other in zip(inputs, others, strict=True)
        if isinstance(mine, Tensor)
    ]
    kept = [mine.clone() for mine, _ in pairs]
    for mine, other in pairs:
        mine.copy_(other)
    try:
        found = replay().clone()
        expected = case.contender.prepare(case.setting, *inputs)()
    finally:
        for (mine, _), before in zip(pairs, kept, strict=True):
            mine.copy_(before)
    error = relative_error(found, expected)
    if not error <= case.bound:
        raise WrongReplay(f"a replay with other inputs is off by {error:.1e}, above {case.bound:g}")


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
