"""Every contender gives what it should; what does not is stopped before anything is timed."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from nerve_fast import blocked
from nerve_fast.bench import bench_entropy, bench_pipeline, bench_walk, measure, suite
from nerve_fast.bench.case import Contender, Operation, Setting, cases
from nerve_fast.bench.floors import Floor
from nerve_fast.bench.isolated import isolated
from nerve_fast.bench.machine import Machine, quantiles, rounds_for
from nerve_fast.bench.measure import Memory, Scratch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs bench.gpu itself")


@pytest.fixture(scope="module")
def machine():
    machine = Machine("cpu")
    # Not measured: tests are not there to time.
    machine.bandwidth = 1e10
    machine.matrix_rates = dict.fromkeys(("float32", "float16", "bfloat16"), 1e11)
    return machine


@pytest.fixture(scope="module")
def scratch():
    with Scratch() as scratch:
        yield scratch


OTHERS = [file for file in suite.FILES if file is not bench_pipeline]
SMALL = [
    case
    for case in suite.select("cpu", "full", tokens=[96], files=OTHERS)
    # Kernels have their own tests, and take their time in the interpreter.
    if not case.contender.name.startswith("triton")
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_contender_is_right_and_gets_a_row(case, machine, scratch):
    row = measure.measure(case, machine, scratch, clock=lambda run, rounds: [1.0])
    assert row.error is not None, row.note
    assert row.error <= case.bound
    assert row.seconds == 1.0
    assert row.error_tokens == 96
    assert row.allocated is not None
    assert row.resident is not None


def test_a_gpu_has_cases_of_every_operation_and_its_kernels():
    found = suite.select("cuda")
    assert {case.operation.name for case in found} == set(suite.operation_names())
    walks = {case.contender.name for case in found if case.operation.name == "walk"}
    assert {"triton factorized", "triton dense", "triton streaming", "SDPA"} <= walks
    assert len(suite.select("cuda", "quick")) < len(found) < len(suite.select("cuda", "full"))


def wrong(setting, q, k):
    run = bench_entropy.ours(setting, q, k, backend="blocked")
    return lambda: run() * 1.001


def poisoned(setting, q, k):
    return lambda: bench_entropy.truth(setting, q, k) * torch.nan


def no_memory(setting, q, k):
    def run():
        raise MemoryError("far too much\nof it")

    return run


def never(run, rounds):
    pytest.fail("it was timed")


@pytest.mark.parametrize("prepare", [wrong, poisoned])
def test_a_wrong_kernel_is_not_timed(prepare, machine, scratch):
    (case,) = cases(bench_entropy.ENTROPY, [Contender("mine", prepare)], [("quick", Setting(64))])
    row = measure.measure(case, machine, scratch, clock=never)
    assert row.seconds is None
    assert row.note.startswith("WRONG: error ")
    assert row.note.endswith("above 1e-05, not timed")


def test_one_that_fails_is_a_row_with_the_reason(machine, scratch):
    contender = Contender("mine", no_memory)
    (case,) = cases(bench_entropy.ENTROPY, [contender], [("quick", Setting(64))])
    row = measure.measure(case, machine, scratch, clock=never)
    assert row.note == "MemoryError: far too much"


def test_one_that_is_absent_says_so(machine, scratch):
    contender = Contender("mine", wrong, needs="no_such_package")
    (case,) = cases(bench_entropy.ENTROPY, [contender], [("quick", Setting(64))])
    row = measure.measure(case, machine, scratch, clock=never)
    assert row.note == "absent: no_such_package is not installed"


def test_large_ones_are_compared_at_fewer_tokens(machine, scratch):
    contender = dataclasses.replace(bench_entropy.CONTENDERS[1], checked=64)
    (case,) = cases(bench_entropy.ENTROPY, [contender], [("quick", Setting(128))])
    row = measure.measure(case, machine, scratch, clock=lambda run, rounds: [2.0])
    assert row.error_tokens == 64
    assert row.error > 0


def test_the_way_of_auto_is_marked(machine, scratch):
    shift = Setting(1024, normalization="shift")
    ways = cases(bench_walk.WALK, bench_walk.ROUTES[3:], [("quick", shift)])
    rows = [measure.measure(case, machine, scratch, lambda run, rounds: [1.0]) for case in ways]
    assert [row.contender for row in rows if row.taken] == ["blocked factorized"]
    assert {row.contender for row in rows} == {
        "blocked factorized",
        "blocked dense",
        "blocked streaming",
    }


def test_our_own_mistakes_are_seen(machine, scratch, monkeypatch):
    right = blocked.head_entropy
    monkeypatch.setattr(blocked, "head_entropy", lambda *given: right(*given) * 1.001)
    (case,) = cases(bench_entropy.ENTROPY, bench_entropy.CONTENDERS[1:2], [("quick", Setting(64))])
    row = measure.measure(case, machine, scratch, clock=never)
    assert row.note.startswith("WRONG: error 1.0e-03")


def test_steps_are_told(pipe):
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    profile = measure.profiled(lambda: pipe(pixels, ["a", "b"]))
    steps = measure.steps_of(profile)
    assert set(steps) == {"CLIP", "VAE", "UNet", "entropy", "walk", "resampling"}
    assert all(seconds > 0 for seconds in steps.values())


def test_pytest_runs_the_cases(tmp_path):
    output = tmp_path / "here.json"
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "--tier", "quick"]
    done = subprocess.run(
        [*command, "-k", "head_entropy and (SDPA or blocked)", f"--benchmark-json={output}"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert "2 passed" in done.stdout, done.stdout
    benchmarks = json.loads(output.read_text())["benchmarks"]
    assert {one["extra_info"]["contender"] for one in benchmarks} == {"SDPA", "blocked"}
    assert all(one["extra_info"]["error"] < 1e-5 for one in benchmarks)


def take(size, times):
    # Blocks that the heap keeps when they are gone.
    held = [torch.ones(size, dtype=torch.int8) for _ in range(times + 1)]
    del held[:times]
    memory = Memory("cpu")
    blocks = [torch.ones(size, dtype=torch.int8) for _ in range(times)]
    resident, process = memory.peak()
    allocated = measure.allocated_on_cpu(
        lambda: [torch.ones(size, dtype=torch.int8) for _ in range(times)] and None
    )
    return len(blocks + held), resident, process, allocated


@pytest.mark.parametrize(("size", "times"), [(64 << 20, 1), (2 << 20, 16), (1 << 16, 512)])
def test_memory_is_that_of_the_run(size, times):
    _, resident, process, allocated = isolated(take, size, times)
    assert 0.95 * size * times <= resident <= 1.2 * size * times
    assert process > resident
    assert size * times <= allocated <= 1.01 * size * times


def fail():
    raise ValueError("no\nway")


def die():
    import os

    os._exit(9)


def test_processes_that_fail_or_die_are_told():
    with pytest.raises(RuntimeError, match="ValueError: no"):
        isolated(fail)
    with pytest.raises(MemoryError, match="was killed, most likely for want of memory"):
        isolated(die)


def test_inputs_take_turns_where_a_cache_would_flatter(machine, scratch, monkeypatch):
    monkeypatch.setattr(machine, "cache_bytes", 1 << 20)
    setting = Setting(64)
    little_work = [Floor(operations=1, moved=1 << 19)]
    assert machine.copies(little_work, "float32") == 4
    assert machine.copies([Floor(operations=1e15, moved=1 << 19)], "float32") == 1
    assert machine.copies([Floor(operations=1, moved=1 << 22)], "float32") == 1
    used = []
    operation = Operation(
        "a sum",
        lambda setting, seed: (torch.full((4,), seed + 1.0),),
        lambda setting, x: x.double().sum(),
        lambda setting: little_work,
    )

    def prepare(setting, x):
        def run():
            used.append(x[0].item())
            return x.sum()

        return run

    (case,) = cases(operation, [Contender("mine", prepare)], [("quick", setting)])
    measure.measure(case, machine, scratch, lambda run, rounds: [run() and 1.0 for _ in range(5)])
    assert used[-5:] == [1, 2, 3, 4, 1]


def test_rounds_and_quantiles():
    assert (rounds_for(1e-6), rounds_for(0.05), rounds_for(10)) == (100, 10, 3)
    assert quantiles([3.0]) == (3.0, 3.0, 3.0)
    median, low, high = quantiles([float(i) for i in range(11)])
    assert (median, low, high) == (5, 2, 8)
