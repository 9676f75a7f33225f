"""A further normalization is one more entry of the table: every backend and route takes it."""

import importlib.util

import pytest
import torch

import nerve_fast as nf
from nerve_fast import reference
from nerve_fast.dispatch import choose
from nerve_fast.normalization import NORMALIZATIONS, Normalization
from nerve_fast.numerics import ERROR_BOUNDS, relative_error
from nerve_fast.reference.walk import transition

FURTHER = [
    Normalization("fifth", scale=0.5, offset=0.2),
    Normalization("fifth", scale=0.5, offset=0.2, clamped=True),
    Normalization("fifth", scale=2.0, offset=2.5),
    Normalization("fifth", scale=3.0, offset=-0.4, clamped=True),
]
GRID = (7, 9)
BACKENDS = ["reference", "blocked"]
if importlib.util.find_spec("triton") is not None:
    BACKENDS.append("triton")
ROUTES = ("dense", "streaming", "factorized")


@pytest.fixture(params=FURTHER, ids=lambda rule: f"{rule.scale}a{rule.offset:+}{rule.clamped:d}")
def rule(request, monkeypatch):
    monkeypatch.setitem(NORMALIZATIONS, "fifth", request.param)
    return request.param


@pytest.fixture
def inputs(make_qk, make_prior):
    """``q, k, prior, head_weights`` in float32, with tokens in groups as a network has them."""
    q, k = make_qk(3, 63, 16, dtype=torch.float32)
    groups = q[:, ::9].repeat_interleave(9, dim=1)
    prior, weights = make_prior(63, 5).float(), make_prior(3).float()
    return groups + 0.5 * q, groups + 0.5 * k, prior, weights


def routes_of(backend, rule):
    """The routes of a backend that are exact for a rule."""
    if backend == "reference":
        return ("dense",)
    return ROUTES if rule.linear else ROUTES[:2]


@pytest.mark.parametrize("beta", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_and_route_walks_with_it(inputs, rule, backend, beta):
    q, k, G, w = inputs
    config = nf.NerveConfig(normalization="fifth", beta=beta, steps=4)
    expected = reference.random_walk(
        q.double(), k.double(), G.double(), GRID, config, w.double()
    ).probabilities
    for route in routes_of(backend, rule):
        out = nf.random_walk(
            q, k, G, GRID, config, head_weights=w, backend=backend, route=route, max_memory="1GB"
        )
        assert relative_error(out, expected) <= ERROR_BOUNDS[torch.float32], route


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_local_matrix_takes_it(inputs, rule, backend):
    q, k, _, w = inputs
    config = nf.NerveConfig(normalization="fifth", beta=0.0, self_affinity=0.3, radius=2)
    expected = transition(reference.cosine_affinity(q.double(), k.double(), w), GRID, config)
    local = nf.local_affinity(
        q, k, GRID, head_weights=w, radius=2, self_affinity=0.3, backend=backend
    )
    S = local.normalized("fifth").to_dense()
    assert relative_error(S, expected) <= ERROR_BOUNDS[torch.float32]


def test_plans_take_it(rule):
    config = nf.NerveConfig(normalization="fifth")
    plan = nf.plan((5, 16_384, 64), 21, config=config, max_memory="16GB")
    assert (plan.route == "factorized") == rule.linear
    if rule.linear:
        return
    with pytest.raises(nf.InputError, match="not exact with normalization 'fifth'; it is with"):
        nf.plan((5, 16_384, 64), 21, config=config, route="factorized")


def test_a_message_lists_it(rule):
    if not rule.linear:
        pytest.skip("routes are listed by linear rules alone")
    with pytest.raises(nf.InputError, match="it is with 'l1' and 'shift' and 'fifth'"):
        nf.plan((5, 1024, 64), 21, route="factorized")


def test_signs_and_linearity_follow_from_the_fields():
    assert [rule.linear for rule in FURTHER] == [True, False, True, False]
    assert [rule.signed for rule in FURTHER] == [True, False, False, False]
    for name, linear, signed in (
        ("softmax", False, False),
        ("relu", False, False),
        ("l1", True, True),
        ("shift", True, False),
    ):
        assert (NORMALIZATIONS[name].linear, NORMALIZATIONS[name].signed) == (linear, signed)


def test_gradients_reach_through_it(inputs, rule):
    q, k, G, w = (x.double() for x in inputs)
    found = []
    for backend in ("reference", "blocked"):
        leaf = q.clone().requires_grad_()
        config = nf.NerveConfig(normalization="fifth", steps=2)
        nf.random_walk(
            leaf, k, G, GRID, config, head_weights=w, backend=backend
        ).square().sum().backward()
        found.append(leaf.grad)
    assert choose("auto", q.device, q.dtype, True) == "blocked"
    torch.testing.assert_close(*found)
