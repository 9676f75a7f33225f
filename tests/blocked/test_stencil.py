"""Windows as sparse rows: the places of entries are kept, their values are not."""

import pytest
import torch

from nerve_fast import blocked, reference
from nerve_fast.blocked import stencil
from nerve_fast.utils.windows import emptied

GRID, RADIUS = (5, 7), 2


@pytest.fixture(params=[0, 10**6])
def kept_or_not(request, monkeypatch):
    monkeypatch.setattr(stencil, "FEW_ENTRIES", request.param)
    stencil._known_places.cache_clear()


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("later", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_matrices_of_one_grid_have_their_own_values(kept_or_not, make_prior, first, later):
    for mode in (first, later, first):
        weights, x = make_prior(35, 25), make_prior(35, 3)
        with mode():
            found = blocked.local_matmul(weights, GRID, RADIUS, x)
        entries = emptied(weights, GRID, RADIUS)
        torch.testing.assert_close(found, reference.local_matmul(entries, GRID, RADIUS, x))


def test_a_gradient_follows_products_without_one(kept_or_not, make_prior):
    weights, x = make_prior(35, 25), make_prior(35, 3)
    with torch.inference_mode():
        blocked.local_matmul(weights, GRID, RADIUS, x)
    x.requires_grad_()
    blocked.local_matmul(weights, GRID, RADIUS, x).square().sum().backward()
    other = x.detach().clone().requires_grad_()
    reference.local_matmul(weights, GRID, RADIUS, other).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
