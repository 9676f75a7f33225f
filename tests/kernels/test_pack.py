import pytest
import torch

from nerve_fast import reference
from nerve_fast.kernels.pack import pack
from nerve_fast.numerics import relative_error


@pytest.mark.parametrize(("heads", "head_dim"), [(5, 64), (3, 40), (1, 7)])
def test_packing(make_qk, make_prior, device, dtype, bound, heads, head_dim):
    q, k = make_qk(2, heads, 77, head_dim, dtype=dtype)
    w = make_prior(2, heads, dtype=torch.float32)
    packed_q, packed_k = pack(q.to(device), k.to(device), w.to(device))
    channels = heads * head_dim
    assert packed_q.shape[-1] % 64 == 0
    assert (packed_q[..., channels:] == 0).all()
    assert (packed_k[..., channels:] == 0).all()
    A = packed_q.double() @ packed_k.double().mT * w.amax(-1)[:, None, None].to(device)
    assert relative_error(A, reference.cosine_affinity(q.double(), k.double(), w.double())) <= bound


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_packing_stays_in_range_for_any_weights(make_qk, device, scale):
    q, k = make_qk(1, 2, 9, 16, dtype=torch.float16)
    w = torch.tensor([[1.0, 0.5]]) * scale
    packed_q, packed_k = pack(q.to(device), k.to(device), w.to(device))
    assert torch.isfinite(packed_q).all()
    assert torch.isfinite(packed_k).all()
