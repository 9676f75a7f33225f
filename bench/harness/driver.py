"""The parts of ``python -m bench.gpu``, carried out on this machine."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence

from nerve_fast.bench.harness import compiling
from nerve_fast.bench.harness.case import Case, Setting
from nerve_fast.bench.harness.checks import check_kernels
from nerve_fast.bench.harness.machine import Machine, quantiles
from nerve_fast.bench.harness.measure import Scratch, measure
from nerve_fast.bench.harness.row import Row
from nerve_fast.dispatch import tuning

CANDIDATES_SECONDS = 60
"""That compiling every configuration may take."""


class Driver:
    """Does each part; :class:`~nerve_fast.bench.harness.rehearsal.Rehearsal` only counts its time.

    Attributes:
        machine: that is measured.
        kind: of device, as cases name it.
    """

    def __init__(self):
        self.machine = Machine()
        self.kind = self.machine.device.type
        self.scratch = Scratch()

    @property
    def on_gpu(self) -> bool:
        return self.kind == "cuda"

    def now(self) -> float:
        """Seconds of a clock that only goes forward."""
        return time.monotonic()

    def __enter__(self):
        # The compilers' cache of this run, for the processes too.
        self.scratch.__enter__()
        return self

    def __exit__(self, *error):
        self.scratch.__exit__(*error)

    def compile_cases(self, cases: Sequence[Case], seconds: float) -> list[str]:
        """Compile in processes; the interpreter has nothing to compile."""
        return compiling.compile_cases(cases, seconds) if self.on_gpu else []

    def measure_ceilings(self) -> None:
        self.machine.measure_ceilings()

    def measure(self, case: Case) -> Row:
        """One case; its first call is not told where it was compiled before."""
        row = measure(case, self.machine, self.scratch)
        return dataclasses.replace(row, first_seconds=None) if self.on_gpu else row

    def check_kernels(self, alone: bool = False) -> list[dict]:
        return check_kernels(self.on_gpu, alone)

    def time_candidates(self, setting: Setting, deadline: float) -> list[dict]:
        """Every configuration: what :mod:`nerve_fast.kernels.configs` should prefer."""
        machine = self.machine
        left = deadline - self.now()
        if self.on_gpu and left > 0:
            compiling.compile_candidates(
                setting, os.cpu_count() or 1, min(CANDIDATES_SECONDS, left / 2)
            )

        def seconds_of(run: Callable[[], object]) -> float:
            replay = machine.graphed(run) if machine.on_gpu else None
            rounds = 20 if machine.on_gpu else 1
            return quantiles(machine.clock(replay or run, rounds, replay is not None))[0]

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
            if self.now() > deadline:
                break
        return found
