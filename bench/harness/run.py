"""A run of many cases: rows on the screen and in the results as they come."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from nerve_fast.bench.cases import startup
from nerve_fast.bench.harness import suite
from nerve_fast.bench.harness.case import Case
from nerve_fast.bench.harness.machine import Machine
from nerve_fast.bench.harness.measure import Scratch, measure
from nerve_fast.bench.harness.results import FOLDER, Results, load, own, problem_of, updated
from nerve_fast.bench.harness.row import Row
from nerve_fast.bench.harness.words import bytes_in_words, in_words, seconds_in_words
from nerve_fast.bench.pages import bars
from nerve_fast.errors import InputError
from nerve_fast.utils.files import written_whole
from nerve_fast.utils.provenance import commit


def bench(
    device: torch.device,
    tier: str,
    operations: Sequence[str] | None,
    tokens: Sequence[int] | None,
    output: Path | None,
    update_results: bool = False,
) -> int:
    """``nerve-fast bench``: measure, print, and keep what was found.

    Args:
        device: that is measured.
        tier: ``quick``, ``default`` or ``full``.
        operations: their names; ``None`` is all.
        tokens: sizes instead of the tier's.
        output: file; ``None`` keeps the results of a whole run where the report looks for them, and
            those of a part nowhere.
        update_results: let the rows take the place of those of the same cases in this machine's
            results.

    Returns:
        1 where one of our own results was wrong or is missing, else 0; a rival's failure is a row.

    Raises:
        InputError: an operation's name is unknown, nothing is left to measure, the device is
            neither a CPU nor CUDA's, or the file cannot be written.
    """
    known = suite.operation_names()
    for name in operations or ():
        if name not in known:
            raise InputError(f"--op is {name!r}; expected one of {', '.join(known)}")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device is {str(device)!r}; expected cpu or cuda")
    if device.type == "cuda":
        # Cases name the kind of device: of several GPUs it is the current one.
        torch.cuda.set_device(device)
    machine = Machine(device)
    whole = tier != "quick" and operations is None and tokens is None
    if output is None and whole:
        output = results_folder() / f"{machine.slug}.json"
    if update_results:
        earlier_path = results_folder() / f"{machine.slug}.json"
        earlier = load(earlier_path)
        there, here = (about["torch"] for about in (earlier["machine"], machine.describe()))
        if there != here:
            raise InputError(f"{earlier_path}: is of torch {there}, here is {here}; measure all")
    cases = suite.select(device.type, tier, operations, tokens)
    if not cases:
        raise InputError(f"tier {tier} has no cases of {', '.join(operations)}; leave out --quick")
    results = Results(machine, output, tier=tier)
    print(f"{machine.describe()['device']}: measuring its ceilings", flush=True)
    machine.measure_ceilings()
    results.put(ceilings=machine.ceilings())
    print(ceilings(machine))
    try:
        with Scratch() as scratch:
            run_cases(cases, lambda case: measure(case, machine, scratch), results)
        if operations is None:
            results.put(startup=startup.rows(machine))
            for row in results.document["startup"]:
                print(f"{row['what']:40} {seconds_in_words(row['seconds']):>8}")
    except BaseException:
        if output is not None:
            print(f"what was measured is in {results.unfinished}, earlier results are as they were")
        raise
    results.finish()
    if whole:
        for bar in bars.judge(results.document):
            print(bar)
    failed = sum(row.failed for row in results.rows if row.ours)
    rivals = sum(row.failed for row in results.rows if not row.ours)
    if update_results and not failed + rivals:
        output = earlier_path
        with written_whole(output) as path:
            document = updated(earlier, results.rows, commit())
            path.write_text(json.dumps(document, indent=1) + "\n")
    of_others = f", {rivals} of others failed" if rivals else ""
    where = f"written to {output}" if output is not None else "--output FILE would keep them"
    print(f"{len(results.rows)} rows, {failed} failed{of_others}; {where}")
    return int(failed > 0)


def results_folder() -> Path:
    """Return the report's folder in a checkout, elsewhere the working directory."""
    return FOLDER if (FOLDER.parents[1] / "setup.py").exists() else Path.cwd()


def run_cases(
    cases: Sequence[Case],
    measure_one: Callable[[Case], Row],
    results: Results,
    deadline: float = math.inf,
    now: Callable[[], float] = time.monotonic,
) -> list[str]:
    """Measure each case; returns the names of those not reached by the ``deadline``.

    Args:
        cases: in the order to measure them.
        measure_one: gives the row of a case.
        results: take the rows.
        deadline: by the clock ``now``.
    """
    skipped = []
    found: dict[tuple, list[Row]] = {}
    for case in tqdm(cases, "cases", unit="case", disable=None):
        if now() > deadline:
            skipped.append(str(case))
            continue
        row = measure_one(case)
        results.add(row)
        problem = found.setdefault(problem_of(row), [])
        problem.append(row)
        tqdm.write(line(row, own(problem)))
    return skipped


def line(row: Row, mine: Row | None) -> str:
    """A row for people."""
    what = f"{row.operation}, {in_words(row.setting)}"
    text = f"{what:58} {row.contender + ' *' * row.taken:24}"
    if row.seconds is None:
        return f"{text} {row.note}"
    times = f"× {row.seconds / mine.seconds:.2f}" if mine else ""
    floor = f"{row.floor / row.seconds:.0%} of floor" if row.floor else ""
    python = f"Python {seconds_in_words(row.python)}  " if row.python else ""
    return (
        f"{text} {seconds_in_words(row.seconds):>8} {times:>9} {floor:>14}  "
        f"{bytes_in_words(row.allocated):>8}  error {row.error:.0e}  {python}{row.note}"
    ).rstrip()


def ceilings(machine: Machine) -> str:
    rates = ", ".join(
        f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in machine.matrix_rates.items()
    )
    cached = machine.cache_bandwidth
    cached = f", {cached / 1e9:,.0f} GB/s in its cache" if cached else ""
    return f"{machine.bandwidth / 1e9:,.0f} GB/s{cached}, {rates}"
