"""All cases, and the selection of those that are asked for."""

import dataclasses
from collections.abc import Iterable, Sequence

from nerve_fast.bench.cases import (
    affinity,
    entropy,
    local,
    pipeline,
    refine,
    series,
    stage,
    walk,
)
from nerve_fast.bench.harness.case import TIERS, Case, Setting

FILES = (walk, stage, affinity, local, series, entropy, refine, pipeline)


def select(
    device: str,
    tier: str = "default",
    operations: Iterable[str] | None = None,
    tokens: Sequence[int] | None = None,
    files: Iterable = FILES,
) -> list[Case]:
    """The cases of a tier and of those below it.

    Args:
        device: ``cpu`` or ``cuda``.
        tier: ``quick``, ``default`` or ``full``.
        operations: their names; ``None`` is all.
        tokens: sizes instead of the tiers'.
        files: modules whose cases they are.
    """
    chosen = TIERS[: TIERS.index(tier) + 1]
    found = [case for file in files for case in file.measured(device) if case.tier in chosen]
    if tier == "quick":
        # Compiling takes longer than all the rest.
        found = [case for case in found if case.contender.ours or not case.contender.compiled]
    if operations is not None:
        found = [case for case in found if case.operation.name in operations]
    if tokens:
        found = [resized for case in found for resized in _resized(case, tokens)]
    # Settings that differed in size alone may now be one.
    once = {(case.operation.name, case.contender.name, case.setting): case for case in found}
    return list(once.values())


def find(operation: str, contender: str, setting: Setting) -> Case:
    """The case with these names at any setting.

    Raises:
        LookupError: there is none.
    """
    for file in FILES:
        for case in file.measured(setting.device):
            if (case.operation.name, case.contender.name) == (operation, contender):
                return dataclasses.replace(case, setting=setting)
    raise LookupError(f"no case {contender} of {operation}")


def operation_names() -> list[str]:
    """The names of all operations."""
    names = (case.operation.name for file in FILES for case in file.measured("cpu"))
    return list(dict.fromkeys(names))


def _resized(case: Case, tokens: Sequence[int]) -> list[Case]:
    settings = [case.setting.replace(tokens=size) for size in tokens]
    return [
        dataclasses.replace(case, setting=setting)
        for setting in settings
        if case.contender.only(setting)
    ]
