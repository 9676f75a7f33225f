"""Every route against the float64 reference, within the bounds of the numerical bar."""

import pytest
import torch

import nerve_fast as nf
from nerve_fast import blocked, reference
from nerve_fast.blocked import tiles
from nerve_fast.clusters import cluster_keys
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.numerics import ERROR_BOUNDS, relative_error

ROUTES = {
    "factorized": {"route": "factorized"},
    "streaming": {"route": "streaming"},
    "dense": {"route": "dense", "stored_rows": 10**6},
    "half dense": {"route": "dense", "stored_rows": 64},
}


def blocked_walk(*arguments, **options):
    return blocked.random_walk(*arguments, **options).probabilities


def reference_walk(*arguments, **options):
    return reference.random_walk(*arguments, **options).probabilities


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of 32 rows and 48 columns, so that small problems have many, some of them cut."""
    monkeypatch.setattr(tiles, "CPU_TILE_BYTES", 4 * 48 * 32)
    for module in (tiles, blocked.walk, blocked.entropy):
        monkeypatch.setattr(module, "MAX_COLUMNS", 48)


def exact_for(normalization):
    linear = NORMALIZATIONS[normalization].linear
    return [name for name in ROUTES if linear or name != "factorized"]


def check(q, k, G, grid, config, weights=None, names=None):
    clusters = clusters_of(k, G, config)
    wide = (x.double() for x in (q, k, G))
    expected = reference_walk(*wide, grid, config, weights, clusters=clusters)
    best = expected.topk(min(2, G.shape[-1]), dim=-1).values
    for name in names or exact_for(config.normalization):
        way = {**ROUTES[name], "clusters": clusters}
        out = blocked_walk(q, k, G, grid, config, weights, **way).double()
        error = relative_error(out, expected)
        assert error <= ERROR_BOUNDS[q.dtype], name
        clear = best[..., 0] - best[..., -1] > 10 * error
        assert torch.equal(out.argmax(-1)[clear], expected.argmax(-1)[clear]), name


def clusters_of(k, G, config):
    """Those of ``config.global_keys``, weighted by the mean of the heads."""
    if config.global_keys is None:
        return None
    return cluster_keys(k, torch.full(k.shape[:-2], 1 / k.shape[-3]), config.global_keys, G)


def related(q, k):
    """Keys near their queries and tokens in groups: cosines up to 1, as in a trained network."""
    groups = q[..., ::17, :].repeat_interleave(17, dim=-2)[..., : q.shape[-2], :]
    return (groups + 0.5 * q).to(q.dtype), (groups + 0.5 * k).to(q.dtype)


@pytest.mark.parametrize("dtype", ERROR_BOUNDS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_routes_agree_with_the_reference(make_qk, make_prior, normalization, dtype):
    q, k = related(*make_qk(5, 143, 40, dtype=dtype))
    G = make_prior(143, 21, dtype=dtype)
    check(q, k, G, (11, 13), nf.NerveConfig(normalization=normalization))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(
    ("grid", "labels", "changes"),
    [
        ((1, 1), 3, {}),
        ((7, 9), 1, {}),
        ((5, 13), 171, {}),
        ((2, 97), 4, {"radius": 2}),
        ((6, 11), 4, {"radius": 4, "self_affinity": 0.0}),
        ((6, 11), 4, {"alpha": 0.0}),
        ((6, 11), 4, {"alpha": 1.0}),
        ((6, 11), 4, {"beta": 0.0}),
        ((6, 11), 4, {"beta": 1.0}),
        ((6, 11), 4, {"steps": 0}),
        ((6, 11), 4, {"temperature": 0.01}),
        ((6, 11), 4, {"global_keys": 17}),
        ((13, 10), 4, {"global_keys": 3, "beta": 1.0}),
        ((13, 10), 1, {"global_keys": 130}),
    ],
)
def test_routes_agree_at_the_edges(make_qk, make_prior, normalization, grid, labels, changes):
    q, k = related(*make_qk(1, grid[0] * grid[1], 80, dtype=torch.float32))
    G = make_prior(grid[0] * grid[1], labels, dtype=torch.float32)
    check(q, k, G, grid, nf.NerveConfig(normalization=normalization, **changes))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_zero_vectors_stay_where_they_are(make_qk, make_prior, normalization):
    q, k = make_qk(2, 66, 8, dtype=torch.float32)
    q[:, 5] = 0
    k[:, 40:] = 0
    G = make_prior(66, 4, dtype=torch.float32)
    config = nf.NerveConfig(normalization=normalization, self_affinity=0.0)
    check(q, k, G, (6, 11), config)


def test_a_row_without_mass_stays_in_place_in_the_factorized_route(make_prior):
    q = torch.ones(1, 6, 4)
    G = make_prior(6, 3, dtype=torch.float32)
    config = nf.NerveConfig(normalization="shift", beta=1.0)
    out = blocked_walk(q, -q, G, (2, 3), config, None, route="factorized")
    torch.testing.assert_close(out, G)


def test_batches_and_views_and_given_weights(make_qk, make_prior):
    q, k = (x.transpose(-3, -2) for x in make_qk(2, 2, 66, 3, 8))
    G = make_prior(2, 2, 4, 66).mT
    weights = make_prior(2, 2, 3)
    for normalization in NORMALIZATIONS:
        check(q, k, G, (6, 11), nf.NerveConfig(normalization=normalization), weights)


@pytest.mark.parametrize(
    ("wanted", "weighted"),
    [("qkG", False), ("G", False), *((some, True) for some in ("qkG", "q", "k", "G", "w", "Gw"))],
)
@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradients_are_those_of_the_reference(
    make_qk, make_prior, normalization, clustered, wanted, weighted
):
    """Whichever inputs want one: what the others give may not be overwritten either."""
    q, k = make_qk(2, 143, 5)
    inputs = {"q": q, "k": k, "G": make_prior(143, 3), "w": make_prior(2)}
    config = nf.NerveConfig(normalization=normalization, steps=2, temperature=0.5)
    clusters = clusters_of(k, inputs["G"], config.replace(global_keys=100 if clustered else None))

    def gradients(walk, **arguments):
        leaves = {name: x.clone().requires_grad_(name in wanted) for name, x in inputs.items()}
        q, k, G, w = leaves.values()
        weights = w if weighted else None
        out = walk(q, k, G, (11, 13), config, weights, clusters=clusters, **arguments)
        out.square().sum().backward()
        return [leaves[name].grad for name in wanted]

    expected = gradients(reference_walk)
    for name in exact_for(normalization):
        for mine, other in zip(gradients(blocked_walk, **ROUTES[name]), expected, strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("weight", [0.01, 3.0, 40.0])
def test_weights_are_used_as_given(make_qk, make_prior, normalization, weight):
    q, k = related(*make_qk(2, 143, 40, dtype=torch.float32))
    weights = weight * make_prior(2, dtype=torch.float32)
    G = make_prior(143, 4, dtype=torch.float32)
    if normalization == "shift" and weight > 1:
        pytest.skip("refused by nerve_fast.random_walk: numerators would be negative")
    names = exact_for(normalization)
    config = nf.NerveConfig(normalization=normalization)
    expected = reference_walk(
        q.double(), k.double(), G.double(), (11, 13), config, weights.double()
    )
    for name in names:
        out = blocked_walk(q, k, G, (11, 13), config, weights, **ROUTES[name])
        error = relative_error(out, expected)
        # Logits of up to 800 lose digits in float32 before anyone can sum them.
        assert error <= 1e-5 * max(weight, 1), name


def test_the_plain_mean_of_heads_needs_no_entropy(make_qk, make_prior, monkeypatch):
    q, k = make_qk(3, 66, 8)
    G = make_prior(66, 4)
    config = nf.NerveConfig(sharpness=0.0)
    monkeypatch.setattr(blocked.walk, "entropy_of_all", None)
    out = blocked_walk(q, k, G, (6, 11), config, None, route="streaming")
    torch.testing.assert_close(out, reference_walk(q, k, G, (6, 11), config, None))


def test_medium_matmul_precision_allows_16_bit_products(make_qk, make_prior, monkeypatch):
    monkeypatch.setattr(blocked.precision, "bfloat16_pays", lambda: True)
    q, k = related(*make_qk(2, 143, 40, dtype=torch.float32))
    G = make_prior(143, 21, dtype=torch.float32)

    def walk():
        config = nf.NerveConfig()
        return blocked_walk(q, k, G, (11, 13), config, None, route="streaming")

    exact = walk()
    torch.set_float32_matmul_precision("medium")
    try:
        low = walk()
    finally:
        torch.set_float32_matmul_precision("highest")
    error = relative_error(low, exact)
    assert 1e-6 < error <= ERROR_BOUNDS[torch.bfloat16]


def test_16_bit_products_only_where_the_hardware_has_them(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(blocked.precision, "bfloat16_pays", lambda: False)
    assert blocked.precision.product_dtype(torch.bfloat16, cpu) == torch.float32
    monkeypatch.setattr(blocked.precision, "bfloat16_pays", lambda: True)
    assert blocked.precision.product_dtype(torch.bfloat16, cpu) == torch.bfloat16
    assert blocked.precision.product_dtype(torch.float32, cpu) == torch.float32
    assert blocked.precision.product_dtype(torch.float16, cpu) == torch.float32
    assert blocked.precision.product_dtype(torch.float64, cpu) == torch.float64
