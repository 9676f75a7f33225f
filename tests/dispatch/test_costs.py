import pytest
import torch

import nerve_fast as nf
from nerve_fast.dispatch import planning

SHAPE = (5, 16384, 64)


def plan(normalization="softmax", **options):
    return nf.plan(
        SHAPE,
        21,
        config=nf.NerveConfig(normalization=normalization),
        **{"device": "cuda", "dtype": torch.bfloat16, "max_memory": "16GB", **options},
    )


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch):
    monkeypatch.setattr(planning, "triton_obstacle", lambda *kind: None)


@pytest.mark.parametrize(
    ("normalization", "route"),
    [("shift", "factorized"), ("l1", "factorized"), ("softmax", "dense"), ("relu", "dense")],
)
def test_a_gpu_takes_kernels_by_the_same_rules(normalization, route):
    chosen = plan(normalization)
    assert (chosen.backend, chosen.route) == ("triton", route)
    assert "not confirmed on a GPU" in chosen.rates


def test_the_dial_turns_there_too():
    least = plan(route="streaming").peak_memory
    plans = [plan(max_memory=budget) for budget in ("2GB", "500MB", least)]
    assert plans[0].stored_rows == 16384
    assert 0 < plans[1].stored_rows < 16384
    assert plans[2].route == "streaming"
    assert all(chosen.backend == "triton" for chosen in plans)


def test_members_of_a_batch_are_stored_side_by_side():
    shape = (4, *SHAPE)
    chosen = nf.plan(shape, 21, device="cuda", dtype=torch.bfloat16, max_memory="1GB")
    assert (chosen.backend, chosen.route) == ("triton", "dense")
    assert 0 < chosen.stored_rows < SHAPE[1]
    assert chosen.peak_memory <= 1e9


def test_a_large_walk_needs_little_on_the_streaming_route():
    large = nf.plan(
        (5, 65_536, 64),
        21,
        device="cuda",
        dtype=torch.bfloat16,
        route="streaming",
        max_memory="2GB",
    )
    assert large.backend == "triton"
    assert large.peak_memory < 2e9
