"""First runs are no measurements: they wait for memory."""

import pytest
import torch

from nerve_fast.bench.cases import walk
from nerve_fast.bench.harness import examine
from nerve_fast.bench.harness.case import Setting, cases


@pytest.mark.parametrize(
    ("durations", "seconds"),
    [((30.0, 17.0), 17.0), ((3.0, 1.5), 1.5), ((100.0,), 100.0), ((0.5,), 0.5)],
)
def test_a_long_run_is_timed_when_it_is_warm(tmp_path, monkeypatch, durations, seconds):
    (case,) = cases(walk.WALK, [walk.ROUTES[-1]], [("quick", Setting(64))])
    truth = case.operation.truth(case.setting, *case.operation.inputs(case.setting, 0))
    torch.save(truth, tmp_path / "truth.pt")
    left = list(durations)

    def seconds_of(run):
        run()
        return left.pop(0)

    monkeypatch.setattr(examine, "seconds_of", seconds_of)
    found = examine.examine(case, tmp_path / "truth.pt")
    assert (found.first_seconds, found.seconds) == (durations[0], seconds)
    assert not left
    assert found.error < 1e-5
