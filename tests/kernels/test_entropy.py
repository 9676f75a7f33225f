import pytest
import torch

from nerve_fast import reference
from nerve_fast.kernels.entropy import entropy_weights, head_entropy


@pytest.mark.parametrize("scale", [None, 0.0, 2.0, -0.3])
@pytest.mark.parametrize("shape", [(5, 143, 64), (1, 77, 40), (2, 50, 160), (2, 16, 7), (1, 1, 1)])
def test_head_entropy(make_qk, device, dtype, shape, scale):
    q, k = make_qk(*shape, dtype=dtype)
    out = head_entropy(q.to(device), k.to(device), scale).cpu()
    expected = reference.head_entropy(q.double(), k.double(), scale).float()
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-5)


def test_sharp_and_shifted_logits(make_qk, device):
    q, k = make_qk(2, 70, 16, dtype=torch.float32)
    for factor in (30.0, 1000.0):
        out = head_entropy(factor * q.to(device), factor * k.to(device)).cpu()
        expected = reference.head_entropy((factor * q).double(), (factor * k).double())
        assert torch.isfinite(out).all()
        torch.testing.assert_close(out.double(), expected, rtol=1e-3, atol=1e-4)


def test_batches_and_views(make_qk, device):
    q, k = make_qk(2, 3, 35, 4, 24, dtype=torch.float32)
    q, k = q.to(device).transpose(-3, -2), k.to(device).transpose(-3, -2)
    expected = reference.head_entropy(q.double(), k.double()).float()
    torch.testing.assert_close(head_entropy(q, k), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 33, 150])
def test_rows_may_be_fewer_or_more_than_columns(make_qk, device, rows):
    q, k = make_qk(2, 200, 24, dtype=torch.float32)
    q, k = q[:, :rows], k[:, :77]
    expected = reference.head_entropy(q.double(), k.double()).float()
    torch.testing.assert_close(head_entropy(q.to(device), k.to(device)).cpu(), expected)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 1e6])
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_entropy_weights(make_qk, device, heads, sharpness):
    q, k = make_qk(2, heads, 100, 16, dtype=torch.float32)
    q *= torch.linspace(0.3, 3, heads)[:, None, None]
    weights, scale = entropy_weights(q.to(device), k.to(device), sharpness)
    entropy = reference.head_entropy(q.double(), k.double())
    expected = reference.entropy_weights(entropy, sharpness).float()
    torch.testing.assert_close(weights.cpu(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(scale, weights.amax(-1))
