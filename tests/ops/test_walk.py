import pytest
import torch

import nerve_fast as nf
from nerve_fast.config import NORMALIZATIONS

BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_random_walk_is_as_exact_as_its_inputs(make_qk, make_prior, dtype, normalization):
    q, k = make_qk(5, 77, 40, dtype=dtype)
    G = make_prior(77, 7, dtype=dtype)
    config = nf.NerveConfig(normalization=normalization)
    P = nf.random_walk(q, k, G, (7, 11), config)
    assert P.dtype == dtype
    expected = nf.random_walk(q.double(), k.double(), G.double(), (7, 11), config)
    error = (P.double() - expected).norm() / expected.norm()
    assert error <= BOUNDS[dtype]


def test_random_walk_of_a_batch_is_that_of_its_members(make_qk, make_prior):
    q, k = make_qk(2, 3, 2, 12, 4)
    G = make_prior(2, 3, 12, 5)
    P = nf.random_walk(q, k, G, (3, 4))
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(P[i, j], nf.random_walk(q[i, j], k[i, j], G[i, j], (3, 4)))


def test_random_walk_takes_views_that_are_not_contiguous(make_qk, make_prior):
    q, k = make_qk(12, 2, 4)
    G = make_prior(5, 12).T
    q, k = q.transpose(0, 1), k.transpose(0, 1)
    expected = nf.random_walk(q.contiguous(), k.contiguous(), G.contiguous(), (3, 4))
    torch.testing.assert_close(nf.random_walk(q, k, G, (3, 4)), expected)


@pytest.mark.parametrize("backend", ["blocked", "triton"])
def test_backends_to_come_say_so(make_qk, make_prior, backend):
    q, k = make_qk(1, 6, 4)
    calls = [
        lambda: nf.random_walk(q, k, make_prior(6, 2), (2, 3), backend=backend),
        lambda: nf.head_entropy(q, k, backend=backend),
        lambda: nf.cosine_affinity(q, k, backend=backend),
        lambda: nf.local_affinity(q, k, (2, 3), backend=backend),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"'{backend}' is not part of this .*'reference' is"):
            call()


def test_unknown_backends_and_routes_are_refused(make_qk, make_prior):
    q, k = make_qk(1, 6, 4)
    G = make_prior(6, 2)
    with pytest.raises(ValueError, match="backend is 'cuda'; expected one of auto, reference"):
        nf.random_walk(q, k, G, (2, 3), backend="cuda")
    with pytest.raises(ValueError, match="route is 'fast'; expected one of auto, dense"):
        nf.random_walk(q, k, G, (2, 3), route="fast")
    with pytest.raises(
        ValueError, match="'factorized' is not exact .*; it is with 'shift' and 'l1'"
    ):
        nf.random_walk(q, k, G, (2, 3), route="factorized")
    with pytest.raises(ValueError, match="'streaming' is not part of this version.*'dense' is"):
        nf.random_walk(q, k, G, (2, 3), route="streaming")


def test_the_reference_is_one_argument_away(make_qk, make_prior):
    q, k = make_qk(1, 6, 4)
    G = make_prior(6, 2)
    chosen = nf.random_walk(q, k, G, (2, 3), backend="reference", route="dense")
    torch.testing.assert_close(nf.random_walk(q, k, G, (2, 3)), chosen)
