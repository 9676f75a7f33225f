import kernels
import pytest
import torch

kernel = kernels.get_kernel("__REPOSITORY__", version=__VERSION__)
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
ROUTES = [("softmax", "streaming"), ("softmax", "dense"), ("shift", "factorized")]


def inputs(device, dtype, grid=(5, 7), heads=2, channels=40, labels=5):
    tokens = grid[0] * grid[1]
    q, k = torch.randn(2, 2, heads, tokens, channels, device=device).to(dtype)
    prior = torch.randn(2, tokens, labels, device=device).softmax(-1)
    return q, k, prior


def error(out, expected):
    return float((out.double() - expected).norm() / expected.norm())


@pytest.mark.kernels_ci
@pytest.mark.parametrize(("normalization", "route"), ROUTES)
def test_random_walk(device, dtype, normalization, route):
    q, k, prior = inputs(device, dtype)
    config = kernel.NerveConfig(normalization=normalization)
    weights = torch.full(q.shape[:2], 1 / q.shape[1], device=device)
    out = kernel.random_walk(q, k, prior, (5, 7), config, weights, route)
    expected = kernel.reference.random_walk(
        q.double(), k.double(), prior.double(), (5, 7), config, weights.double()
    ).probabilities
    assert error(out, expected) <= BOUNDS[dtype]


@pytest.mark.kernels_ci
def test_affinities_and_entropy(device, dtype):
    q, k, _ = inputs(device, dtype)
    expected = kernel.reference.head_entropy(q.double(), k.double())
    assert error(kernel.head_entropy(q, k), expected) <= BOUNDS[dtype]
    expected = kernel.reference.cosine_affinity(q.double(), k.double())
    assert error(kernel.cosine_affinity(q, k), expected) <= BOUNDS[dtype]


@pytest.mark.kernels_ci
def test_the_layer(device):
    q, k, prior = inputs(device, torch.float32)
    out = kernel.layers.RandomWalk()(q, k, prior, (5, 7))
    assert torch.equal(out, kernel.random_walk(q, k, prior, (5, 7)))
