"""Every contender gives what it should."""

import pytest
import torch

from nerve_fast.bench.cases import pipeline
from nerve_fast.bench.harness import measure, suite

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs bench.gpu itself")

OTHERS = [file for file in suite.FILES if file is not pipeline]


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
