import pytest
import torch
from torch.autograd import forward_ad

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
@pytest.mark.parametrize("grid", [(5, 7), (1, 35), (35, 1), (2, 3), (11, 16), (9, 17)])
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


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16"])
def test_vectors_of_any_length_and_of_zeros_have_their_cosines(make_qk, kind, scale):
    q, k = (x.to(getattr(torch, kind)) for x in make_qk(2, 35, 6))
    q[0, 3] = 0
    q[0, 4], k[1, 5] = q[0, 4] * scale, k[1, 5] * scale
    arguments = ((5, 7), None, 1, 0.3)
    torch.testing.assert_close(
        blocked.local_affinity(q, k, *arguments), reference.local_affinity(q, k, *arguments)
    )


def test_what_is_no_number_stays_where_it_is(make_qk):
    q, k = make_qk(1, 35, 6)
    k[0, 17] = torch.nan
    found = blocked.local_affinity(q, k, (5, 7), None, 1, 0.3)[0]
    tokens = found.isnan().any(-1).nonzero()[:, 0].tolist()
    assert tokens == [9, 10, 11, 16, 18, 23, 24, 25]


def test_forward_derivatives_are_those_of_the_reference(make_qk):
    q, k = make_qk(2, 12, 3)
    direction = torch.ones_like(q)

    def derivative(backend):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(q, direction)
            found = backend.local_affinity(dual, k, (3, 4), None, 1, 0.5)
            return forward_ad.unpack_dual(found).tangent

    torch.testing.assert_close(derivative(blocked), derivative(reference))
