"""The local matrix alone: its normalization and its product, against the reference."""

import pytest
import torch

import nerve_fast as nf
from nerve_fast import reference
from nerve_fast.kernels import backend
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.numerics import ERROR_BOUNDS, relative_error

GRID = (5, 13)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("radius", [1, 3])
def test_local_transition_agrees_with_the_reference(make_qk, make_prior, normalization, radius):
    q, k = make_qk(2, 3, 65, 8)
    w = make_prior(2, 3)
    values = reference.local_affinity(q, k, GRID, w, radius, 0.7)
    # The middle need not be the same for all tokens.
    values[..., values.shape[-1] // 2] = torch.linspace(0, 2, 65, dtype=values.dtype)
    arguments = (GRID, radius, NORMALIZATIONS[normalization], 0.1)
    out = backend.local_transition(values.float(), *arguments)
    expected = reference.local_transition(values, *arguments)
    assert relative_error(out, expected) <= ERROR_BOUNDS[torch.float32]


@pytest.mark.parametrize("labels", [1, 32, 45])
@pytest.mark.parametrize("radius", [1, 4])
def test_local_matmul_agrees_with_the_reference(make_prior, labels, radius):
    weights = make_prior(3, 1, 65, (2 * radius + 1) ** 2)
    x = make_prior(2, 65, labels)
    out = backend.local_matmul(weights.float(), GRID, radius, x.float())
    expected = reference.local_matmul(weights, GRID, radius, x)
    assert out.shape == (3, 2, 65, labels)
    assert relative_error(out, expected) <= ERROR_BOUNDS[torch.float32]


def test_the_public_matrix_takes_them(make_qk, make_prior):
    q, k = make_qk(2, 65, 8, dtype=torch.float32)
    x, w = make_prior(65, 3).float(), make_prior(2).float()
    local = nf.local_affinity(q, k, GRID, head_weights=w, backend="triton")
    expected = nf.local_affinity(q, k, GRID, head_weights=w, backend="reference")
    out = local.normalized("relu").matmul(x)
    assert relative_error(out, expected.normalized("relu").matmul(x)) <= 1e-5
