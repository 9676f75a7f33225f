"""The first runs of a case: its error, its memory and roughly its time."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from nerve_fast.bench.harness.case import Case, Setting
from nerve_fast.bench.harness.machine import seconds_of
from nerve_fast.bench.harness.memory import Memory, allocated_on_cpu
from nerve_fast.bench.harness.profiling import attention_of, profiled, steps_of
from nerve_fast.numerics import relative_error

FEW_TOKENS = 256
"""A run on so many tokens comes first, so that libraries have initialised themselves."""

LONG_SECONDS = 1.0
"""Runs that take longer are timed once, in the second run: the first one waits for memory that
the system has not lent to anyone yet, which takes as long as the arithmetic."""

TOO_LONG_SECONDS = 20.0
"""Of what takes longer allocations are not measured."""

ONCE_SECONDS = 60.0
"""What takes longer is run once in all, and so timed with the memory's cost."""


@dataclasses.dataclass
class Examined:
    """What the first runs of a case gave; ``seconds`` is the duration of the last full one."""

    error: float
    first_seconds: float
    seconds: float
    allocated: int | None
    resident: int | None
    process: int | None
    parts: dict[str, float] | None
    attention: str


def examine(case: Case, truth: Path) -> Examined:
    """Run a case, compare its result, and measure its memory and roughly its time.

    Args:
        case: that is measured.
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
        elif LONG_SECONDS < seconds < ONCE_SECONDS:
            seconds = seconds_of(keep)
        error = 0.0
        if case.checked == case.setting:
            error = error_of(outs.pop(), truth)
        outs.clear()
        parts = None
        if case.operation.parts:
            parts = steps_of(profiled(run, memory.on_gpu))
        attention = ""
        if case.contender.attends:
            attention = attention_of(profiled(run, memory.on_gpu))
        if allocated is None and seconds < TOO_LONG_SECONDS:
            if case.operation.steady and seconds > LONG_SECONDS:
                run = case.made(case.setting.replace(steps=min(case.setting.steps, 2)))
            allocated = allocated_on_cpu(run)
        if case.checked != case.setting:
            error = error_of(case.made(case.checked)(), truth)
    return Examined(error, first, seconds, allocated, resident, process, parts, attention)


def examine_named(operation: str, contender: str, setting: Setting, *arguments) -> Examined:
    """:func:`examine` of the case of that name: cases hold functions that cannot be pickled."""
    from nerve_fast.bench.harness.suite import find

    return examine(find(operation, contender, setting), *arguments)


def error_of(out: Tensor, truth: Path) -> float:
    """The relative error against the tensor in a file; NaN where any value is."""
    return relative_error(out, torch.load(truth, mmap=True))
