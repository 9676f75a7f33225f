import pytest
import torch

import nerve_fast as nf
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.numerics import ERROR_BOUNDS, relative_error

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_walk_is_as_exact_as_its_inputs(make_qk, make_prior, dtype, normalization):
    q, k = make_qk(5, 77, 40, dtype=dtype)
    G = make_prior(77, 7, dtype=dtype)
    config = nf.NerveConfig(normalization=normalization)
    P = nf.random_walk(q, k, G, (7, 11), config)
    assert P.dtype == dtype
    expected = nf.random_walk(q.double(), k.double(), G.double(), (7, 11), config)
    assert relative_error(P, expected) <= ERROR_BOUNDS[dtype]


def test_a_float64_prior_is_walked_in_float64(make_qk, make_prior):
    q, k = make_qk(2, 12, 4, dtype=torch.float32)
    G = make_prior(12, 3)
    expected = nf.random_walk(q.double(), k.double(), G, (3, 4), backend="reference")
    for backend in ("reference", "blocked"):
        P = nf.random_walk(q, k, G, (3, 4), backend=backend)
        torch.testing.assert_close(P, expected, rtol=1e-12, atol=1e-12)


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


def test_a_backend_that_cannot_says_why(make_qk, make_prior):
    q, k = make_qk(1, 6, 4)
    calls = [
        lambda: nf.random_walk(q, k, make_prior(6, 2), (2, 3), backend="triton"),
        lambda: nf.head_entropy(q, k, backend="triton"),
        lambda: nf.cosine_affinity(q, k, backend="triton"),
        lambda: nf.local_affinity(q, k, (2, 3), backend="triton"),
    ]
    for call in calls:
        with pytest.raises(
            nf.InputError, match="'triton' takes float16, bfloat16, .*'blocked' and"
        ):
            call()


def test_unknown_and_impossible_choices_are_refused(make_qk, make_prior):
    q, k = make_qk(1, 6, 4)
    G = make_prior(6, 2)
    for choice, message in (
        ({"backend": "cuda"}, "backend is 'cuda'; expected one of auto, reference"),
        ({"route": "fast"}, "route is 'fast'; expected one of auto, dense"),
        ({"route": "factorized"}, "'factorized' is not exact .*; it is with 'l1' and 'shift'"),
        ({"backend": "reference", "route": "streaming"}, "no route 'streaming'.*'blocked' has it"),
        ({"max_memory": "1KB"}, "max_memory is 1 KB; this walk needs at least .* KB"),
    ):
        with pytest.raises(nf.InputError, match=message):
            nf.random_walk(q, k, G, (2, 3), **choice)


def test_the_reference_is_one_argument_away(make_qk, make_prior):
    q, k = make_qk(1, 6, 4)
    G = make_prior(6, 2)
    chosen = nf.random_walk(q, k, G, (2, 3), backend="reference", route="dense")
    torch.testing.assert_close(nf.random_walk(q, k, G, (2, 3)), chosen)
