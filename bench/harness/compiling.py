"""What compiles at its first call, compiled before anything is timed, in processes."""

from collections.abc import Sequence

import torch

from nerve_fast.bench.harness.case import Case, Setting
from nerve_fast.bench.harness.side_by_side import side_by_side
from nerve_fast.dispatch import tuning


def compile_cases(cases: Sequence[Case], seconds: float) -> list[str]:
    """Fill the compilers' caches on disk with what ``cases`` will ask for.

    Each is started once, as it will be started: a cache key depends on sizes, strides, alignment
    and blocks, which only the launch itself has in full.

    Returns:
        What was not compiled, and why. It is compiled when its turn comes.
    """
    shares = {
        (case.operation.name, case.contender.name, setting): None
        for case in cases
        if case.contender.compiled
        for setting in (case.setting, case.checked)
    }
    return [
        f"{operation}, {contender}, N = {setting.tokens:,}, {setting.dtype}: {problem}"
        for (operation, contender, setting), _, problem in side_by_side(
            start_once, list(shares), seconds
        )
        if problem
    ]


def start_once(operation: str, contender: str, setting: Setting) -> None:
    """Run the case of that name once."""
    from nerve_fast.bench.harness.suite import find

    with torch.inference_mode():
        find(operation, contender, setting).made(setting)()
        if setting.device == "cuda":
            torch.cuda.synchronize()


def compile_candidates(setting: Setting, parts: int, seconds: float) -> list[str]:
    """The same for every configuration of every kernel, in ``parts``.

    Returns:
        What went wrong.
    """
    shares = [(setting, part, parts) for part in range(parts)]
    return [problem for _, _, problem in side_by_side(start_share, shares, seconds) if problem]


def start_share(setting: Setting, part: int, parts: int) -> None:
    """Start each configuration whose number is ``part`` modulo ``parts``."""
    number = 0

    def start(run) -> float:
        nonlocal number
        if number % parts == part:
            run()
        number += 1
        return 1.0

    with torch.inference_mode():
        for _ in tuning.tune_operations(
            (setting.heads, setting.tokens, setting.head_dim),
            setting.labels,
            torch.device(setting.device),
            setting.torch_dtype,
            start,
        ):
            pass
