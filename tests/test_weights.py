import pytest
import torch

import nerve_fast as nf
from nerve_fast import weights


@pytest.fixture
def waits(monkeypatch):
    """The calls by which the host would wait for a device."""
    calls = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        right = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, right=right):
            calls.append(name)
            return right(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return calls


@pytest.fixture
def walk(make_qk, make_prior):
    pytest.importorskip("triton")
    from nerve_fast.kernels import backend

    q, k = make_qk(2, 6, 16, dtype=torch.float32)
    G = make_prior(6, 2, dtype=torch.float32)
    config = nf.NerveConfig(alpha=0.0)

    def run(head_weights):
        return backend.random_walk(q, k, G, (2, 3), config, head_weights, route="streaming")

    return run


@pytest.mark.parametrize("inference", [False, True])
def test_weights_from_entropies_are_not_looked_at(walk, waits, inference):
    with torch.inference_mode(inference):
        made = nf.entropy_weights(torch.tensor([1.0, 2.0]), 1.0)
        waits.clear()
        walk(made)
    assert waits == []


def test_the_callers_weights_are_looked_at_once(walk, waits):
    given = torch.tensor([1.0, 2.0])
    walk(given)
    assert waits == ["tolist"]
    walk(given)
    assert waits == ["tolist"]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("normalization", ["softmax", "shift"])
def test_a_call_waits_once_for_the_check_of_all_its_arguments(
    make_qk, make_prior, waits, normalization, inference
):
    pytest.importorskip("triton")
    q, k = make_qk(2, 6, 16, dtype=torch.float32)
    G = make_prior(6, 2, dtype=torch.float32)
    config = nf.NerveConfig(alpha=0.0, normalization=normalization)
    with torch.inference_mode(inference):
        made = nf.entropy_weights(torch.tensor([1.0, 2.0]), 1.0)
    for given in (torch.tensor([0.25, 0.75]), made):
        waits.clear()
        nf.random_walk(q, k, G, (2, 3), config, head_weights=given, backend="triton")
        assert waits == ["tolist"]


def test_weights_that_were_right_and_are_changed_are_looked_at_again(make_qk, make_prior):
    q, k = make_qk(2, 6, 16)
    G = make_prior(6, 2)
    given = torch.tensor([0.25, 0.75])
    nf.random_walk(q, k, G, (2, 3), head_weights=given)
    given[0] = torch.nan
    with pytest.raises(ValueError, match="head_weights holds"):
        nf.random_walk(q, k, G, (2, 3), head_weights=given)


def test_changes_in_place_are_seen(waits):
    made = nf.entropy_weights(torch.tensor([1.0, 2.0]), 1.0)
    assert weights.known_sum(made) == 1.0
    made *= 3
    assert weights.known_sum(made) is None
    assert weights.largest_sum(made) == pytest.approx(3.0)
    assert weights.known_sum(made[:1]) is None
    made[0] = torch.nan
    with pytest.raises(ValueError, match="head_weights holds"):
        weights.largest_sum(made)


def test_largest_sum():
    assert weights.largest_sum(torch.tensor([[1.0, 2.0], [4.0, 0.5]])) == 4.5
    assert weights.largest_sum(torch.tensor([40_000.0, 40_000.0]).half()) == 80_000
    for wrong in (-1.0, torch.inf, torch.nan):
        with pytest.raises(ValueError, match="expected finite numbers, 0 or more"):
            weights.largest_sum(torch.tensor([0.5, wrong]))
