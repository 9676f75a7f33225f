"""No route without N×N takes N×N memory: peak resident memory, each in a process of its own."""

import sys

import pytest
import torch

from bench.isolated import measure
from nerve_fast import NerveConfig, blocked, plan

GRID = (128, 256)
TOKENS = GRID[0] * GRID[1]
DENSE_BYTES = 4 * TOKENS**2
HEADS, HEAD_DIM, LABELS = 2, 8, 4

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def make_walk(normalization, route):
    q, k = torch.randn(2, HEADS, TOKENS, HEAD_DIM)
    prior = torch.rand(TOKENS, LABELS).softmax(-1)
    config = NerveConfig(normalization=normalization, steps=1)
    weights = torch.full((HEADS,), 1 / HEADS)
    return lambda: blocked.random_walk(q, k, prior, GRID, config, weights, route=route)


def make_entropy():
    q, k = torch.randn(2, HEADS, TOKENS, HEAD_DIM)
    return lambda: blocked.head_entropy(q, k)


def make_local():
    q, k = torch.randn(2, HEADS, TOKENS, HEAD_DIM)
    return lambda: blocked.local_affinity(q, k, GRID, None, 1, 1.0)


@pytest.mark.parametrize(
    ("normalization", "route"),
    [
        ("softmax", "streaming"),
        ("relu", "streaming"),
        ("l1", "streaming"),
        ("l1", "factorized"),
        ("shift", "factorized"),
    ],
)
def test_walks_stay_small_and_within_their_plan(normalization, route):
    peak = measure(make_walk, normalization, route, runs=1).peak_memory
    planned = plan(
        (HEADS, TOKENS, HEAD_DIM),
        LABELS,
        config=NerveConfig(normalization=normalization, steps=1),
        route=route,
        weights_given=True,
    ).peak_memory
    assert peak < 0.02 * DENSE_BYTES
    assert peak <= planned


@pytest.mark.parametrize("make", [make_entropy, make_local])
def test_entropy_and_local_affinity_stay_small(make):
    assert measure(make, runs=1).peak_memory < 0.02 * DENSE_BYTES
