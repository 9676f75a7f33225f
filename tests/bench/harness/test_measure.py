"""What is wrong is stopped before anything is timed."""

import dataclasses

import pytest
import torch

from nerve_fast import blocked
from nerve_fast.bench.cases import entropy, walk
from nerve_fast.bench.harness import measure
from nerve_fast.bench.harness.case import Contender, Operation, Setting, cases
from nerve_fast.bench.harness.floors import Floor

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs bench.gpu itself")


def wrong(setting, q, k):
    run = entropy.ours(setting, q, k, backend="blocked")
    return lambda: run() * 1.001


def poisoned(setting, q, k):
    return lambda: entropy.truth(setting, q, k) * torch.nan


def no_memory(setting, q, k):
    def run():
        raise MemoryError("far too much\nof it")

    return run


def never(run, rounds):
    pytest.fail("it was timed")


@pytest.mark.parametrize("prepare", [wrong, poisoned])
def test_a_wrong_kernel_is_not_timed(prepare, machine, scratch):
    (case,) = cases(entropy.ENTROPY, [Contender("mine", prepare)], [("quick", Setting(64))])
    row = measure.measure(case, machine, scratch, clock=never)
    assert row.seconds is None
    assert row.note.startswith("WRONG: error ")
    assert row.note.endswith("above 1e-05, not timed")


def test_one_that_fails_is_a_row_with_the_reason(machine, scratch):
    contender = Contender("mine", no_memory)
    (case,) = cases(entropy.ENTROPY, [contender], [("quick", Setting(64))])
    row = measure.measure(case, machine, scratch, clock=never)
    assert row.note == "MemoryError: far too much"


def test_one_that_is_absent_says_so(machine, scratch):
    contender = Contender("mine", wrong, needs="no_such_package")
    (case,) = cases(entropy.ENTROPY, [contender], [("quick", Setting(64))])
    row = measure.measure(case, machine, scratch, clock=never)
    assert row.note == "absent: no_such_package is not installed"


def test_large_ones_are_compared_at_fewer_tokens(machine, scratch):
    contender = dataclasses.replace(entropy.CONTENDERS[1], checked=64)
    (case,) = cases(entropy.ENTROPY, [contender], [("quick", Setting(128))])
    row = measure.measure(case, machine, scratch, clock=lambda run, rounds: [2.0])
    assert row.error_tokens == 64
    assert row.error > 0


def test_the_way_of_auto_is_marked(machine, scratch):
    shift = Setting(1024, normalization="shift")
    ways = cases(walk.WALK, walk.ROUTES[3:], [("quick", shift)])
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
    (case,) = cases(entropy.ENTROPY, entropy.CONTENDERS[1:2], [("quick", Setting(64))])
    row = measure.measure(case, machine, scratch, clock=never)
    assert row.note.startswith("WRONG: error 1.0e-03")


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


class Recorded:
    """A stubbed graph: it gives what the inputs are worth now, or what they were."""

    def __init__(self, run, stale):
        self.run, self.kept = run, run().clone() if stale else None

    def __call__(self):
        return self.run() if self.kept is None else self.kept


@pytest.mark.parametrize("stale", [False, True])
def test_a_replay_is_checked_with_other_inputs(stale, machine, scratch, monkeypatch):
    monkeypatch.setattr(machine, "on_gpu", True)
    monkeypatch.setattr(machine, "graphed", lambda run: Recorded(run, stale))
    monkeypatch.setattr(machine, "python_seconds", lambda run: 2e-5)
    (case,) = cases(entropy.ENTROPY, entropy.CONTENDERS[1:2], [("quick", Setting(64))])
    row = measure.measure(case, machine, scratch, clock=lambda run, rounds: [1.0])
    assert row.replayed
    if stale:
        assert row.seconds is None
        assert row.note.startswith("WRONG: a replay with other inputs is off by ")
    else:
        assert row.seconds == 1.0
        assert row.python == 2e-5


def test_torchs_attention_is_named(machine, scratch):
    (case,) = cases(entropy.ENTROPY, entropy.CONTENDERS[-1:], [("quick", Setting(64))])
    row = measure.measure(case, machine, scratch, clock=lambda run, rounds: [1.0])
    assert row.contender == "SDPA"
    assert row.attention == "flash"
