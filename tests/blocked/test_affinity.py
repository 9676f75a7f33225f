import pytest
import torch

from nerve_fast import blocked, reference
from nerve_fast.blocked import affinity


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_cosine_affinity_agrees_with_the_reference(make_qk, make_prior, batch, weighted):
    q, k = make_qk(*batch, 4, 35, 6)
    q[..., 3, :] = 0
    w = make_prior(*batch, 4) if weighted else None
    torch.testing.assert_close(blocked.cosine_affinity(q, k, w), reference.cosine_affinity(q, k, w))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("radius", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [(5, 7), (1, 35), (35, 1), (2, 3)])
def test_local_affinity_agrees_with_the_reference(
    make_qk, make_prior, monkeypatch, grid, radius, weighted
):
    monkeypatch.setattr(affinity, "STRIPE_BYTES", 2000)
    q, k = make_qk(2, 4, grid[0] * grid[1], 6)
    w = make_prior(2, 4) if weighted else None
    arguments = (q, k, grid, w, radius, 0.3)
    torch.testing.assert_close(
        blocked.local_affinity(*arguments), reference.local_affinity(*arguments)
    )


def test_local_affinity_is_differentiable(make_qk):
    q, k = (x.requires_grad_() for x in make_qk(2, 6, 3))
    assert torch.autograd.gradcheck(
        lambda q, k: blocked.local_affinity(q, k, (2, 3), None, 1, 0.5), (q, k)
    )
