"""Every contender gives what it should; what does not is stopped before anything is timed."""

import dataclasses

import pytest
import torch

from nerve_fast.bench import bench_entropy, bench_pipeline, measure, suite
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
    return Scratch()


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
    walks = [case for case in SMALL if case.operation.name == "walk" and case.contender.route]
    shift = [case for case in walks if case.setting.normalization == "shift"][:4]
    rows = [measure.measure(case, machine, scratch, lambda run, rounds: [1.0]) for case in shift]
    chosen = measure.taken(shift[0].setting)
    assert [row.taken for row in rows] == [case.contender.route == chosen for case in shift]


def take(size):
    memory = Memory("cpu")
    block = torch.ones(size, dtype=torch.int8)
    resident, process = memory.peak()
    allocated, parts = memory.allocated(lambda: (torch.ones(size, dtype=torch.int8), None)[1])
    return block.numel(), resident, process, allocated, parts


def test_memory_is_that_of_the_run():
    size = 64 << 20
    _, resident, process, allocated, parts = isolated(take, size)
    assert size <= resident <= 1.2 * size
    assert process > resident
    assert size <= allocated <= 1.01 * size
    assert parts is None


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


def test_inputs_take_turns_where_a_cache_would_flatter(machine, monkeypatch):
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
    measure.measure(case, machine, Scratch(), lambda run, rounds: [run() and 1.0 for _ in range(5)])
    assert used[-5:] == [1, 2, 3, 4, 1]


def test_rounds_and_quantiles():
    assert (rounds_for(1e-6), rounds_for(0.05), rounds_for(10)) == (100, 10, 3)
    assert quantiles([3.0]) == (3.0, 3.0, 3.0)
    median, low, high = quantiles([float(i) for i in range(11)])
    assert (median, low, high) == (5, 2, 8)
