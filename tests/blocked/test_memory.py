"""No route without N×N takes N×N memory: peak resident memory, each in a process of its own."""

import sys

import pytest
import torch

from nerve_fast import NerveConfig, blocked, plan
from nerve_fast.bench.harness.case import grid_of
from nerve_fast.bench.harness.isolated import isolated
from nerve_fast.bench.harness.memory import Memory

TOKENS = 32_768
DENSE_BYTES = 4 * TOKENS**2
HEADS, HEAD_DIM, LABELS = 2, 8, 4

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def peak_of(make, *arguments):
    """Peak resident bytes of ``make(tokens, …)()`` beyond its inputs, the same run small first."""
    with torch.inference_mode():
        make(1024, *arguments)()
        run = make(TOKENS, *arguments)
        memory = Memory("cpu")
        run()
        return memory.peak()[0]


def make_walk(tokens, normalization, route):
    q, k = torch.randn(2, HEADS, tokens, HEAD_DIM)
    prior = torch.rand(tokens, LABELS).softmax(-1)
    config = NerveConfig(normalization=normalization, steps=1)
    weights = torch.full((HEADS,), 1 / HEADS)
    return lambda: blocked.random_walk(q, k, prior, grid_of(tokens), config, weights, route=route)


WIDE = {"heads": 4, "dim": 160, "labels": 64}
LIMIT = NerveConfig(steps=None, alpha=0.5, tolerance=0.3, normalization="shift", beta=0.5)


def make_wide_limit(tokens):
    q, k = torch.randn(2, WIDE["heads"], tokens, WIDE["dim"])
    prior = torch.rand(tokens, WIDE["labels"]).softmax(-1)
    weights = torch.full((WIDE["heads"],), 1 / WIDE["heads"])
    way = {"route": "factorized"}
    return lambda: blocked.random_walk(q, k, prior, grid_of(tokens), LIMIT, weights, **way)


def test_a_wide_walk_to_the_limit_stays_within_its_plan():
    planned = plan(
        (WIDE["heads"], TOKENS, WIDE["dim"]),
        WIDE["labels"],
        config=LIMIT,
        route="factorized",
        weights_given=True,
    ).peak_memory
    assert isolated(peak_of, make_wide_limit) <= planned


def make_entropy(tokens):
    q, k = torch.randn(2, HEADS, tokens, HEAD_DIM)
    return lambda: blocked.head_entropy(q, k)


def make_local(tokens):
    q, k = torch.randn(2, HEADS, tokens, HEAD_DIM)
    return lambda: blocked.local_affinity(q, k, grid_of(tokens), None, 1, 1.0)


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
    peak = isolated(peak_of, make_walk, normalization, route)
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
    assert isolated(peak_of, make) < 0.02 * DENSE_BYTES
