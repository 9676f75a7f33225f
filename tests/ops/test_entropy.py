import pytest
import torch

import nerve_fast as nf
from nerve_fast import reference
from nerve_fast.ops.entropy import sampled_entropy, spread, spread_in_groups


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_head_entropy_is_float32_or_better(make_qk, dtype):
    q, k = make_qk(2, 3, 7, 5, dtype=dtype)
    entropy = nf.head_entropy(q, k)
    assert entropy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = reference.head_entropy(q.double(), k.double())
    torch.testing.assert_close(entropy.double(), expected, rtol=1e-5, atol=0)


def test_entropy_weights_sum_to_one(make_qk):
    weights = nf.entropy_weights(nf.head_entropy(*make_qk(4, 3, 7, 5)), 2.0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_head_entropy_refuses_a_scale_that_is_not_finite(make_qk, scale):
    with pytest.raises(ValueError, match="scale is .*; expected a finite number"):
        nf.head_entropy(*make_qk(1, 4, 2), scale=scale)


@pytest.mark.parametrize("sharpness", [-1.0, float("nan")])
def test_entropy_weights_refuses_a_bad_sharpness(sharpness):
    with pytest.raises(ValueError, match="sharpness is .*; expected a finite number, 0 or more"):
        nf.entropy_weights(torch.ones(3), sharpness)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_head_entropy_of_some_rows_is_near_that_of_all(make_qk, backend):
    q, k = make_qk(2, 3, 900, 8)
    q *= torch.linspace(0.1, 3, 900, dtype=q.dtype)[:, None]
    every = nf.head_entropy(q, k, backend=backend)
    rows = reference.head_entropy(q[..., None, :], k[..., None, :, :].expand(2, 3, 900, 900, 8))
    for count in (100, 400):
        some = nf.head_entropy(q, k, max_rows=count, backend=backend)
        assert torch.equal(some, nf.head_entropy(q, k, max_rows=count, backend=backend))
        assert not torch.equal(some, every)
        assert (some - every).abs().max() < 4 * rows.std() / count**0.5
    assert torch.equal(nf.head_entropy(q, k, max_rows=900, backend=backend), every)


@pytest.mark.parametrize(("rows", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError)])
def test_head_entropy_refuses_a_number_of_rows_that_is_none(make_qk, rows, error):
    with pytest.raises(error, match="max_rows is"):
        nf.head_entropy(*make_qk(1, 4, 2), max_rows=rows)


def test_the_standard_error_is_that_of_sampled_rows(generator):
    q, k = (torch.randn(2, 3, 2048, 8, generator=generator) for _ in range(2))
    found = sampled_entropy(q, k, 256)
    assert found.rows == 256
    assert found.error.shape == found.mean.shape == (2, 3)
    exact = nf.head_entropy(q, k)
    torch.testing.assert_close(found.mean, nf.head_entropy(q, k, max_rows=256))
    # Six heads: a mean of squared errors over those said, which is 1 in expectation.
    squared = ((found.mean - exact) / found.error).square().mean()
    assert 0.02 < squared < 8
    every = sampled_entropy(q, k, 2048)
    assert every.error is None
    assert torch.equal(every.mean, exact)


def test_groups_of_rows_are_spread_over_columns():
    """Where the grid is as wide as sixteen sampled rows are apart."""
    drawn = spread_in_groups(64 * 64, 1024)
    assert sorted(drawn.flatten().tolist()) == spread(64 * 64, 1024).tolist()
    for group in (drawn % 64).unbind(1):
        assert len(group.unique()) > 16
