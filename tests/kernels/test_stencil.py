import pytest
import torch

from nerve_fast import dispatch, reference
from nerve_fast.kernels import backend
from nerve_fast.kernels.stencil import local_matmul, local_series, local_transition
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.numerics import ERROR_BOUNDS, relative_error

BOUND = ERROR_BOUNDS[torch.float32]


def affinity(make_qk, *batch, grid, radius, self_affinity=0.7):
    q, k = make_qk(*batch, 2, grid[0] * grid[1], 16)
    weights = torch.full((*batch, 2), 0.5, dtype=torch.float64)
    return reference.local_affinity(q, k, grid, weights, radius, self_affinity)


def test_local_transition_takes_any_dtype(make_qk, device, dtype):
    values = affinity(make_qk, grid=(5, 7), radius=1).to(dtype)
    rule = NORMALIZATIONS["softmax"]
    out = local_transition(values.to(device), (5, 7), 1, rule, 0.05)
    assert out.dtype == torch.float32
    expected = reference.local_transition(values.double(), (5, 7), 1, rule, 0.05)
    assert relative_error(out, expected) <= BOUND


@pytest.mark.parametrize("rule", NORMALIZATIONS.values(), ids=NORMALIZATIONS)
@pytest.mark.parametrize(("radius", "self_affinity"), [(1, 0.7), (2, 0.0), (4, 3.0)])
def test_local_transition(make_qk, device, rule, radius, self_affinity):
    values = affinity(make_qk, 3, grid=(5, 7), radius=radius, self_affinity=self_affinity)
    expected = reference.local_transition(values, (5, 7), radius, rule, 0.05)
    out = local_transition(values.float().to(device), (5, 7), radius, rule, 0.05)
    assert out.shape == expected.shape
    assert relative_error(out, expected) <= BOUND


@pytest.mark.parametrize("labels", [1, 16, 70])
@pytest.mark.parametrize(("batch", "others"), [((), ()), ((2,), (2,)), ((2,), ()), ((), (3, 1))])
def test_local_matmul(make_qk, make_prior, device, labels, batch, others):
    weights = affinity(make_qk, *batch, grid=(7, 11), radius=2)
    x = make_prior(*others, 77, labels)
    expected = reference.local_matmul(weights, (7, 11), 2, x)
    out = local_matmul(weights.float().to(device), (7, 11), 2, x.float().to(device))
    assert out.shape == expected.shape
    assert relative_error(out, expected) <= BOUND


@pytest.mark.parametrize(("batch", "others"), [((), ()), ((2,), ()), ((), (3, 1))])
def test_local_series(make_qk, make_prior, device, batch, others):
    values = affinity(make_qk, *batch, grid=(7, 11), radius=2)
    S = reference.local_transition(values, (7, 11), 2, NORMALIZATIONS["softmax"], 0.05)
    G = make_prior(*others, 77, 3)
    expected = reference.local_series(S, (7, 11), 2, G, 0.8, 4)
    out = local_series(S.float().to(device), (7, 11), 2, G.float().to(device), 0.8, 4)
    assert out.shape == expected.shape
    assert relative_error(out, expected) <= BOUND


def test_backends_have_the_same_operations():
    names = {"cosine_affinity", "head_entropy", "local_affinity", "local_matmul", "local_series"}
    names |= {"local_transition", "random_walk"}
    for name in ("reference", "blocked", "triton"):
        module = dispatch.module_of(name, torch.device("cpu"))
        assert names <= set(module.__all__), name
    assert all(hasattr(backend, name) for name in backend.__all__)
