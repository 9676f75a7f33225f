import pytest
import torch

from nerve_fast import blocked, reference
from nerve_fast.blocked import tiles
from nerve_fast.numerics import ERROR_BOUNDS


@pytest.mark.parametrize(("tile_bytes", "columns"), [(4 * 48 * 32, 48), (1 << 20, 1024)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 143, 40), (1, 1, 80), (5, 64, 7)])
def test_head_entropy_agrees_with_the_reference(
    make_qk, monkeypatch, dtype, shape, tile_bytes, columns
):
    monkeypatch.setattr(tiles, "CPU_TILE_BYTES", tile_bytes)
    for module in (tiles, blocked.entropy):
        monkeypatch.setattr(module, "MAX_COLUMNS", columns)
    q, k = make_qk(*shape, dtype=dtype)
    q *= 4
    entropy = blocked.head_entropy(q, k)
    expected = reference.head_entropy(q.double(), k.double())
    assert entropy.shape == shape[:-2]
    bound = ERROR_BOUNDS[expected.dtype if dtype == torch.float64 else torch.float32]
    assert (entropy.double() - expected).abs().max() <= bound * max(expected.abs().max(), 1)
    assert blocked.head_entropy(q, k, 0.3).shape == shape[:-2]


def test_head_entropy_of_logits_far_apart_is_finite():
    q = 1e4 * torch.eye(100)[None]
    assert blocked.head_entropy(q, q).item() == 0


def test_gradients_are_those_of_the_reference(make_qk):
    q, k = make_qk(2, 66, 5)
    grads = []
    for head_entropy in (reference.head_entropy, blocked.head_entropy):
        leaves = [x.clone().requires_grad_() for x in (q, k)]
        head_entropy(*leaves).square().sum().backward()
        grads.append([x.grad for x in leaves])
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("largest", [49.9, 50.1, 3000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_any_size_have_the_references_entropies(make_qk, dtype, largest, sign):
    """Up to a bound exponentials are summed as they are, and beyond it relative to the largest."""
    q, k = make_qk(2, 40, 4, dtype=dtype)
    norms = q.norm(dim=-1).amax((1,)) * k.norm(dim=-1).amax((1,))
    q = sign * q * (largest / norms)[:, None, None]
    # All logits of a row are near one end of the range.
    k = k + 3 * q.mean(1, keepdim=True)
    k = k * (largest / (q.norm(dim=-1).amax((1,)) * k.norm(dim=-1).amax((1,))))[:, None, None]
    expected = reference.head_entropy(q.double(), k.double(), 1.0)
    found = blocked.head_entropy(q, k, 1.0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weak", [0.1, -0.5, 1.0])
@pytest.mark.parametrize("largest", [1.0, 60.0, 400.0, 3000.0])
def test_gradients_are_those_of_the_reference_where_tiles_have_no_share(
    make_qk, monkeypatch, largest, weak
):
    for module in (tiles, blocked.entropy):
        monkeypatch.setattr(module, "MAX_COLUMNS", 16)
    q, k = make_qk(2, 40, 4)
    q = q * largest / (q @ k.mT).abs().max()
    k[:, 16:] *= weak
    grads = []
    for head_entropy in (reference.head_entropy, blocked.head_entropy):
        leaves = [x.clone().requires_grad_() for x in (q, k)]
        head_entropy(*leaves, 1.0).square().sum().backward()
        grads.append([x.grad for x in leaves])
    torch.testing.assert_close(grads[1], grads[0])
