import pytest
import torch

from nerve_fast import blocked, reference


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_cosine_affinity_agrees_with_the_reference(make_qk, make_prior, batch, weighted):
    q, k = make_qk(*batch, 4, 35, 6)
    q[..., 3, :] = 0
    w = make_prior(*batch, 4) if weighted else None
    torch.testing.assert_close(blocked.cosine_affinity(q, k, w), reference.cosine_affinity(q, k, w))
