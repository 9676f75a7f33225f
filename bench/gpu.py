"""``python -m bench.gpu``: is every kernel right on this GPU, and how fast is it?

First come the rows that bars are judged from, 16 bits and small sizes first; then each kernel is
checked against float64 on odd shapes and poisoned memory; then come the other rows, and every
configuration of every kernel. What they compile is compiled before, in processes side by side, and
nothing is timed meanwhile. Each row is compared with float64 before it is timed. What has not been
reached when ``--seconds`` are over is named. Without a GPU the same code runs in Triton's
interpreter, which says nothing about speed, and ``--rehearse`` shows the order and the time that is
expected of each part.
"""

import argparse
import sys
from pathlib import Path

import torch

from nerve_fast.bench.harness import suite
from nerve_fast.bench.harness.case import Case, Setting
from nerve_fast.bench.harness.driver import Driver
from nerve_fast.bench.harness.machine import interpreted
from nerve_fast.bench.harness.rehearsal import Rehearsal
from nerve_fast.bench.harness.results import Results
from nerve_fast.bench.harness.run import ceilings, results_folder, run_cases
from nerve_fast.bench.harness.sanitizers import SANITIZERS, sanitized
from nerve_fast.bench.pages import bars
from nerve_fast.errors import InputError

COMPILE_SHARE, ROWS_SHARE = 0.2, 0.85
"""Of the time: that compiling takes at most, twice; after which no row is started."""


def in_order(cases: list[Case]) -> tuple[list[Case], list[Case]]:
    """The cases that bars are judged from and the others, each in the order to measure them.

    Among them bfloat16 and float16 come before float32, small sizes before large, ours before
    others'. What others compile comes last among the bars': it takes longest.
    """
    wanted = set(bars.asked_for())

    def key(case: Case):
        setting, contender = case.setting, case.contender
        return (
            setting.dtype == "float32",
            contender.compiled and not contender.ours,
            setting.tokens,
            setting.dtype != "bfloat16",
            not contender.ours,
        )

    def judged(case: Case) -> bool:
        return (case.operation.name, case.contender.name, case.setting) in wanted

    ordered = sorted(cases, key=key)
    return [case for case in ordered if judged(case)], [c for c in ordered if not judged(c)]


def session(
    driver: Driver, output: Path | None, seconds: float, tokens: list[int] | None
) -> tuple[Results, list[str]]:
    """Everything in its order; returns the results and what was not reached.

    Args:
        driver: does or rehearses each part.
        output: where the results go; ``None`` keeps none.
        seconds: that all of it may take.
        tokens: sizes instead of the usual ones.
    """
    start = driver.now()
    deadline = start + seconds

    def tell(what: str) -> None:
        print(f"{driver.now() - start:5.0f} s: {what}", flush=True)

    tier = "default" if driver.on_gpu else "quick"
    judged, others = in_order(suite.select(driver.kind, tier, tokens=tokens))
    dtype = "bfloat16" if driver.on_gpu else "float16"
    candidate = Setting(tokens[0] if tokens else 16_384, dtype=dtype, device=driver.kind)
    with driver:
        tell(f"compiling what {len(judged)} cases that bars are judged from start")
        late = driver.compile_cases(judged, COMPILE_SHARE * seconds)
        tell("measuring ceilings")
        driver.measure_ceilings()
        print(ceilings(driver.machine), flush=True)
        results = Results(driver.machine, output, tier=tier)
        rows_end = start + ROWS_SHARE * seconds
        tell(f"measuring {len(judged)} rows that bars are judged from")
        skipped = run_cases(judged, driver.measure, results, rows_end, driver.now)
        tell("checking kernels on odd shapes")
        results.put(checks=driver.check_kernels())
        tell(f"compiling what {len(others)} other cases start")
        late += driver.compile_cases(others, COMPILE_SHARE * seconds)
        tell(f"measuring {len(others)} other rows")
        skipped += run_cases(others, driver.measure, results, rows_end, driver.now)
        tell("configurations of every kernel")
        candidates = driver.time_candidates(candidate, deadline)
        results.put(skipped=skipped, compiled_late=late, candidates=candidates)
        results.finish()
        for what in late:
            print(f"not compiled beforehand: {what}")
        tell("done")
    return results, skipped


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, help="default: bench/results/MACHINE.json")
    parser.add_argument("--seconds", type=float, default=420, help="default: 420")
    parser.add_argument("--tokens", type=int, nargs="+", help="instead of the usual sizes")
    parser.add_argument("--rehearse", action="store_true", help="measure nothing; show the order")
    parser.add_argument("--only-checks", action="store_true", help="time nothing")
    parser.add_argument(
        "--sanitizer", choices=SANITIZERS, help="the checks alone, on a small shape, under this"
    )
    options = parser.parse_args(arguments)
    if options.rehearse:
        driver = Rehearsal()
        _, skipped = session(driver, None, options.seconds, options.tokens)
        print(f"rehearsed: {driver.now():.0f} s expected, {len(skipped)} rows not reached")
        return 0
    if not torch.cuda.is_available() and not interpreted():
        print(
            "no GPU that torch can use; TRITON_INTERPRET=1 tries the code on the CPU, without "
            "saying anything about speed, and --rehearse shows the order",
            file=sys.stderr,
        )
        return 2
    driver = Driver()
    if not driver.on_gpu:
        print("interpreted on the CPU: the times below mean nothing")
    if options.sanitizer:
        try:
            return sanitized(options.sanitizer, driver)
        except InputError as error:
            print(f"bench.gpu: {error}", file=sys.stderr)
            return 2
    if options.only_checks:
        return int(not all(check["passed"] for check in driver.check_kernels(alone=True)))
    output = options.output or results_folder() / f"{driver.machine.slug}.json"
    tokens = options.tokens or (None if driver.on_gpu else [64])
    with torch.inference_mode():
        results, skipped = session(driver, output, options.seconds, tokens)
    for bar in bars.judge(results.document):
        print(bar)
    wrong = sum(not check["passed"] for check in results.document["checks"])
    wrong += sum(row.failed for row in results.rows if row.ours)
    rivals = sum(row.failed for row in results.rows if not row.ours)
    print(
        f"{len(skipped)} left out for want of time; {rivals} of others failed; "
        f"{wrong} wrong or failed; written to {output}"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
