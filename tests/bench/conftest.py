"""A machine whose ceilings are given, not measured: tests never time anything."""

import dataclasses

import pytest

from nerve_fast.bench.harness.case import Setting
from nerve_fast.bench.harness.machine import Machine
from nerve_fast.bench.harness.measure import Scratch
from nerve_fast.bench.harness.results import Results
from nerve_fast.bench.harness.row import Row


@pytest.fixture(scope="session")
def scratch():
    with Scratch() as scratch:
        yield scratch


@pytest.fixture
def machine():
    machine = Machine("cpu")
    machine.bandwidth = 1e10
    machine.matrix_rates = dict.fromkeys(("float32", "float16", "bfloat16"), 1e11)
    return machine


@pytest.fixture
def row():
    """Makes a row of results."""
    return row_of


def row_of(contender, seconds, tokens=4096, *, operation="walk", low=None, high=None, **fields):
    setting = {key: fields.pop(key) for key in list(fields) if key in ("normalization", "dtype")}
    return Row(
        operation,
        contender,
        dataclasses.asdict(Setting(tokens, **setting)),
        seconds=seconds,
        low=low or (seconds and 0.99 * seconds),
        high=high or (seconds and 1.01 * seconds),
        rounds=5,
        error=1e-7,
        error_tokens=tokens,
        bound=1e-5,
        allocated=10**6,
        resident=2 * 10**6,
        **fields,
    )


@pytest.fixture
def document(machine):
    """Results of a few rows, of another device than any."""
    results = Results(machine, None, tier="default")
    results.document["machine"].update(device="Abacus", threads=2)
    for one in (
        row_of("blocked dense", 0.2, ours=True, route=True, taken=True),
        row_of("blocked streaming", 0.8, ours=True, route=True),
        row_of("reference", 1.0),
        row_of("magic", 0.1, note="of another kind", replayed=True),
        row_of("gone", None, note="absent: gone is not installed"),
        row_of("blocked dense", 3.2, 16_384, ours=True, route=True, taken=True),
        row_of("broken", None, note="ValueError: no"),
    ):
        results.add(one)
    return results.document
