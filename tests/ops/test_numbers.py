"""Numbers at the edges: heads that cancel, values that are none, magnitudes, precision modes."""

import pytest
import torch

import nerve_fast as nf
from nerve_fast import reference
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.numerics import ERROR_BOUNDS, relative_error

GRID = (6, 9)
BACKENDS = ("reference", "blocked")


def routes(backend, normalization):
    if backend == "reference":
        return ("dense",)
    linear = NORMALIZATIONS[normalization].linear
    return ("dense", "streaming", "factorized") if linear else ("dense", "streaming")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(0.25, 0.25, 0.5), (0.5, 0.5, 1.0)])
def test_heads_that_cancel_leave_rows_empty(
    make_qk, make_prior, backend, normalization, beta, weights
):
    if normalization == "shift" and sum(weights) > 1:
        pytest.skip("refused")
    q, k = make_qk(1, 54, 24, dtype=torch.float32)
    q, k = q.expand(3, -1, -1).clone(), torch.cat([k, k, -k])
    k[:, 30:] += 0.5 * (normalization == "softmax")
    G = make_prior(54, 4, dtype=torch.float32)
    w = torch.tensor(weights)
    config = nf.NerveConfig(normalization=normalization, beta=beta, self_affinity=0.0)
    expected = reference.random_walk(
        q.double(), k.double(), G.double(), GRID, config, w.double()
    ).probabilities
    for route in routes(backend, normalization):
        out = nf.random_walk(q, k, G, GRID, config, head_weights=w, backend=backend, route=route)
        assert relative_error(out, expected) <= ERROR_BOUNDS[torch.float32], route


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["q", "k", "prior"])
def test_values_that_are_no_numbers_are_refused_by_name(make_qk, make_prior, backend, value, name):
    q, k = make_qk(2, 54, 8, dtype=torch.float32)
    given = {"q": q, "k": k, "prior": make_prior(54, 3, dtype=torch.float32)}
    given[name][..., 17, 1] = value
    given[name].requires_grad_()
    message = f"{name} holds NaN or infinity in .* elements; expected finite numbers"

    def calls(q, k, prior):
        yield lambda: nf.random_walk(q, k, prior, GRID, backend=backend)
        if name != "prior":
            yield lambda: nf.head_entropy(q, k, backend=backend)
            yield lambda: nf.cosine_affinity(q, k, backend=backend)
            yield lambda: nf.local_affinity(q, k, GRID, backend=backend)

    for call in calls(**given):
        with pytest.raises(nf.InputError, match=message):
            call()
    torch.compiler.reset()
    compiled = torch.compile(
        lambda q, k, prior: nf.random_walk(q, k, prior, GRID, backend=backend), backend="aot_eager"
    )
    with pytest.raises(nf.InputError, match=message):
        compiled(**given)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("scale", [1e-37, 1e-18, 1e19, 1e37])
def test_magnitudes_do_not_count(make_qk, make_prior, backend, normalization, scale):
    q, k = make_qk(2, 54, 8, dtype=torch.float32)
    q[0, 3] = 0
    G = make_prior(54, 3, dtype=torch.float32)
    w = make_prior(2, dtype=torch.float32)
    config = nf.NerveConfig(normalization=normalization)
    expected = nf.random_walk(
        q.double(), k.double(), G.double(), GRID, config, head_weights=w.double()
    )
    for large, other in ((q * scale, k), (q, k * scale), (q * scale, k / scale)):
        out = nf.random_walk(large, other, G, GRID, config, head_weights=w, backend=backend)
        assert relative_error(out, expected) <= ERROR_BOUNDS[torch.float32]
    plain = nf.random_walk(q * scale, k, G, GRID, config.replace(sharpness=0.0), backend=backend)
    assert torch.isfinite(plain).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_entropies_beyond_the_dtype_are_refused(make_qk, make_prior, backend):
    q, k = make_qk(2, 54, 8, dtype=torch.float32)
    G = make_prior(54, 3, dtype=torch.float32)
    with pytest.raises(nf.InputError, match="q reaches .* leave the range of float32"):
        nf.head_entropy(1e20 * q, 1e20 * k, backend=backend)
    with pytest.raises(nf.InputError, match="pass head_weights or sharpness=0"):
        nf.random_walk(1e20 * q, 1e20 * k, G, GRID, backend=backend)
    wide = nf.random_walk(1e20 * q.double(), 1e20 * k.double(), G.double(), GRID, backend=backend)
    assert torch.isfinite(wide).all()


def every_operation(q, k, G, backend):
    local = nf.local_affinity(q, k, GRID, head_weights=torch.tensor([0.5, 0.5]), backend=backend)
    return (
        nf.head_entropy(q, k, backend=backend),
        nf.head_entropy(q, k, max_rows=20, backend=backend),
        nf.cosine_affinity(q, k, backend=backend),
        local.values,
        local.normalized("softmax").matmul(G),
        nf.entropy_weights(nf.head_entropy(q, k, backend=backend), 1.0),
        nf.random_walk(q, k, G, GRID, backend=backend),
        nf.random_walk(q, k, G, GRID, nf.NerveConfig(sharpness=0, global_keys=9, steps=None)),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_autocast_and_the_default_dtype_change_nothing(make_qk, make_prior, backend, dtype):
    q, k = make_qk(2, 54, 8, dtype=dtype)
    G = make_prior(54, 3, dtype=dtype)
    expected = every_operation(q, k, G, backend)
    for low in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=low):
            found = every_operation(q, k, G, backend)
        assert all(map(torch.equal, found, expected))
    torch.set_default_dtype(torch.float64)
    try:
        found = every_operation(q, k, G, backend)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected))
    assert [x.dtype for x in found] == [x.dtype for x in expected]


@pytest.mark.parametrize("weights", [(0.7, 0.6), (3.0, 0.0)])
def test_weights_that_make_numerators_negative_are_refused(make_qk, make_prior, weights):
    q, k = make_qk(2, 54, 8, dtype=torch.float32)
    G = make_prior(54, 3, dtype=torch.float32)
    w = torch.tensor(weights)
    with pytest.raises(nf.InputError, match="head_weights sum to .*; expected at most 1 with"):
        nf.random_walk(q, k, G, GRID, nf.NerveConfig(normalization="shift"), head_weights=w)
    for name in ("softmax", "relu", "l1"):
        nf.random_walk(q, k, G, GRID, nf.NerveConfig(normalization=name), head_weights=w)
