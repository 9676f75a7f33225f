import pytest
import torch

import nerve_fast as nf
from nerve_fast import reference


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
