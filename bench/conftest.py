"""The cases as tests of pytest-benchmark: ``pytest bench --benchmark-only``."""

import dataclasses
import time

import pytest
import torch

from nerve_fast.bench.harness.case import TIERS
from nerve_fast.bench.harness.machine import Machine
from nerve_fast.bench.harness.measure import Scratch, measure
from nerve_fast.bench.harness.suite import select


class Clock:
    """pytest-benchmark's timer: the wall's, or what was measured before, once it is told."""

    def __init__(self):
        self.told: list[float] = []

    def __call__(self) -> float:
        return self.told.pop() if self.told else time.perf_counter()


CLOCK = Clock()


def pytest_addoption(parser):
    parser.addoption("--tier", choices=TIERS, default="default", help="which cases to measure")


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        tier = metafunc.config.getoption("tier")
        cases = select(device, tier, files=[metafunc.module])
        metafunc.parametrize("case", cases, ids=str)


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=CLOCK))


@pytest.fixture(scope="session")
def machine():
    machine = Machine()
    machine.measure_ceilings()
    return machine


@pytest.fixture(scope="session")
def scratch():
    with Scratch() as scratch:
        yield scratch


@pytest.fixture
def run_case(benchmark, machine, scratch):
    """Check a case, then time it by pytest-benchmark; its row goes along in ``extra_info``."""

    def run(case):
        benchmark.group = f"{case.operation.name}, {case.setting}"

        def tell(seconds):
            CLOCK.told = [time for value in reversed(seconds) for time in (value, 0.0)]
            benchmark.pedantic(lambda: None, rounds=len(seconds), iterations=1)
            return seconds

        def clock(function, rounds):
            if machine.on_gpu:
                # By its own events: the wall's clock would time Python's launches.
                return tell(machine.clock(function, rounds))
            benchmark.pedantic(function, rounds=rounds, iterations=1)
            return benchmark.stats.stats.data

        row = measure(case, machine, scratch, clock)
        benchmark.extra_info.update(dataclasses.asdict(row))
        if row.seconds is None:
            (pytest.fail if row.failed else pytest.skip)(row.note)
        if benchmark.stats is None:
            # Too long to be repeated: measured as it was checked, in a process of its own.
            tell([row.seconds])

    return run
