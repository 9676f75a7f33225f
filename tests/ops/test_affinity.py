import pytest
import torch

import nerve_fast as nf
from nerve_fast import blocked, reference
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.numerics import ERROR_BOUNDS, relative_error
from nerve_fast.reference.affinity import keep_local
from nerve_fast.reference.walk import transition


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cosine_affinity_has_the_dtype_of_q(make_qk, dtype):
    q, k = make_qk(2, 3, 6, 5, dtype=dtype)
    A = nf.cosine_affinity(q, k, torch.full((2, 3), 1 / 3, dtype=dtype))
    assert A.dtype == dtype
    assert A.shape == (2, 6, 6)
    assert nf.cosine_affinity(q, k).shape == (2, 3, 6, 6)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("radius", [1, 3])
@pytest.mark.parametrize("grid", [(3, 5), (6, 1), (1, 1)])
def test_local_affinity_is_the_local_part_of_the_cosines(
    make_qk, make_prior, grid, radius, weights
):
    tokens = grid[0] * grid[1]
    q, k = make_qk(2, 3, tokens, 4)
    w = make_prior(2, 3) if weights else None
    local = nf.local_affinity(q, k, grid, head_weights=w, radius=radius, self_affinity=0.7)
    expected = keep_local(reference.cosine_affinity(q, k, w), grid, radius, 0.7)
    # A radius beyond the grid ends where the grid does, and is at least 1.
    assert local.radius == min(radius, max(*grid, 2) - 1)
    assert local.values.shape[-1] == (2 * local.radius + 1) ** 2
    torch.testing.assert_close(local.to_dense(), expected)
    torch.testing.assert_close(local.to_sparse_csr().to_dense(), expected)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_normalized_is_the_local_transition(make_qk, make_prior, normalization):
    q, k = make_qk(2, 3, 15, 4)
    w = make_prior(2, 3)
    q[:, :, 7] = 0
    local = nf.local_affinity(q, k, (3, 5), head_weights=w, self_affinity=0.0)
    config = nf.NerveConfig(
        normalization=normalization, temperature=0.3, beta=0.0, self_affinity=0.0
    )
    expected = transition(reference.cosine_affinity(q, k, w), (3, 5), config)
    torch.testing.assert_close(local.normalized(normalization, 0.3).to_dense(), expected)


def test_half_inputs_stay_exact_through_the_normalization(make_qk, make_prior):
    q, k = make_qk(1, 35, 8)
    base = 5 * make_qk(1, 1, 8)[0]
    for dtype in (torch.float16, torch.bfloat16):
        near = [(base + 0.2 * x).to(dtype) for x in (q, k)]
        w = torch.ones(1)
        S = nf.local_affinity(*near, (5, 7), head_weights=w).normalized("softmax").to_dense()
        exact = nf.local_affinity(*(x.double() for x in near), (5, 7), head_weights=w)
        expected = exact.normalized("softmax").to_dense()
        assert S.dtype == torch.float32
        assert relative_error(S, expected) < ERROR_BOUNDS[dtype] / 10


def test_values_that_do_not_fit_the_grid_are_refused():
    with pytest.raises(ValueError, match="grid is 4 × 4 = 16 tokens"):
        nf.LocalAffinity(torch.rand(6, 9), (4, 4), 1)
    with pytest.raises(ValueError, match=r"values has shape \(6, 9\); expected \(…, N, 25\)"):
        nf.LocalAffinity(torch.rand(6, 9), (2, 3), 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_matmul_agrees_with_the_dense_matrix(make_qk, make_prior, dtype):
    q, k = make_qk(2, 15, 4)
    w = make_prior(2)
    x = make_prior(3, 15, 4)
    local = nf.local_affinity(q, k, (5, 3), head_weights=w, radius=4)
    S = nf.LocalAffinity(local.normalized("shift").values.to(dtype), (5, 3), 4)
    result = S.matmul(x.to(dtype))
    assert result.dtype == dtype
    expected = S.to_dense().double() @ x.to(dtype).double()
    # One rounding of the result, not one of every product.
    half_a_unit = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(result.double(), expected, rtol=1.01 * half_a_unit, atol=1e-7)


@pytest.fixture(params=["sparse rows", "planes"])
def products(request, monkeypatch):
    """Both forms that the backend ``blocked`` has of a window."""
    available = request.param == "sparse rows" and torch.backends.mkl.is_available()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: available)


SHAPES = [((5, 7), 1), ((1, 6), 2), ((6, 1), 3), ((2, 3), 5), ((4, 4), 4)]


@pytest.mark.parametrize(("grid", "radius"), SHAPES)
@pytest.mark.parametrize(("batch", "others"), [((), ()), ((2,), ()), ((2, 1), (3,))])
def test_products_of_the_local_matrix(products, make_prior, grid, radius, batch, others):
    tokens = grid[0] * grid[1]
    # What lies beyond the grid takes no part.
    values = make_prior(*batch, tokens, (2 * radius + 1) ** 2)
    S = nf.LocalAffinity(values, grid, radius)
    x = make_prior(*others, tokens, 3)
    torch.testing.assert_close(S.matmul(x), S.to_dense() @ x)
    for alpha, steps in ((0.7, 4), (1.0, 3), (0.5, 1), (0.9, 0), (0.0, 2)):
        weights = alpha ** torch.arange(steps + 1, dtype=torch.float64)
        terms = [torch.linalg.matrix_power(S.to_dense(), t) @ x for t in range(steps + 1)]
        expected = sum(w * term for w, term in zip(weights, terms, strict=True)) / weights.sum()
        given = x.clone()
        for backend in ("blocked", "reference"):
            S = nf.LocalAffinity(values, grid, radius, backend)
            out = S.power_series(x, alpha=alpha, steps=steps)
            torch.testing.assert_close(out, expected)
        assert torch.equal(x, given)


def test_the_power_series_is_the_walk_on_neighbours(make_qk, make_prior):
    q, k, w, G = *make_qk(2, 35, 8, dtype=torch.float32), make_prior(2), make_prior(35, 3)
    S = nf.local_affinity(q, k, (5, 7), head_weights=w.float()).normalized("softmax", 0.1)
    config = nf.NerveConfig(alpha=0.8, beta=0.0, steps=6, temperature=0.1)
    expected = nf.random_walk(q, k, G.float(), (5, 7), config, head_weights=w.float())
    torch.testing.assert_close(S.power_series(G.float(), alpha=0.8, steps=6), expected)
    assert S.power_series(G.half()).dtype == torch.float16


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_the_power_series_is_differentiable(make_prior, wanted):
    values, G = make_prior(6, 9), make_prior(6, 2)
    values.requires_grad_(wanted[0]), G.requires_grad_(wanted[1])

    def series(values, G):
        return nf.LocalAffinity(values, (2, 3), 1).power_series(G, steps=3)

    assert torch.autograd.gradcheck(series, (values, G))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"steps": None}, "steps is None"), ({"alpha": 2.0}, "alpha"), ({"steps": -1}, "steps")],
)
def test_the_power_series_refuses_bad_settings(make_prior, arguments, message):
    S = nf.LocalAffinity(make_prior(6, 9), (2, 3), 1)
    with pytest.raises(ValueError, match=message):
        S.power_series(make_prior(6, 2), **arguments)


def test_matmul_refuses_another_number_of_tokens(make_qk):
    local = nf.local_affinity(*make_qk(1, 6, 4), (2, 3))
    with pytest.raises(ValueError, match=r"x has shape \(5, 2\); expected \(…, 6, K\)"):
        local.matmul(torch.ones(5, 2))


@pytest.mark.parametrize(
    ("radius", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_local_affinity_refuses_a_bad_radius(make_qk, radius, error):
    with pytest.raises(error, match="radius is .*; expected"):
        nf.local_affinity(*make_qk(1, 6, 4), (2, 3), radius=radius)


def test_local_affinity_is_differentiable(make_qk):
    q, k = (x.requires_grad_() for x in make_qk(1, 6, 3))
    x = torch.eye(6, dtype=q.dtype)
    assert torch.autograd.gradcheck(
        lambda q, k: nf.local_affinity(q, k, (2, 3)).normalized("softmax", 0.5).matmul(x), (q, k)
    )


@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_the_local_matrix_runs_on_the_backend_that_was_asked_for(
    make_qk, make_prior, monkeypatch, backend
):
    q, k = make_qk(2, 35, 8)
    x, w = make_prior(35, 3), make_prior(2)
    outs, taken = [], []
    for module in (reference, blocked):
        for name in ("local_transition", "local_matmul"):
            right = getattr(module, name)

            def spied(*given, module=module, right=right):
                taken.append(module.__name__)
                return right(*given)

            monkeypatch.setattr(module, name, spied)
    for normalization in NORMALIZATIONS:
        for backend_asked in (backend, "auto"):
            local = nf.local_affinity(
                q, k, (5, 7), head_weights=w, radius=2, self_affinity=0.3, backend=backend_asked
            )
            S = local.normalized(normalization)
            assert S.backend == backend_asked
            outs.append((S.values, S.matmul(x)))
        assert taken == [f"nerve_fast.{backend}"] * 2 + ["nerve_fast.blocked"] * 2
        taken.clear()
        torch.testing.assert_close(*outs)
        outs.clear()


def test_a_local_matrix_refuses_a_backend_that_is_none():
    with pytest.raises(nf.InputError, match="backend is 'gpu'; expected one of auto"):
        nf.LocalAffinity(torch.rand(6, 9), (2, 3), 1, backend="gpu")
