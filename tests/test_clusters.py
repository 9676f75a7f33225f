"""Clusters of keys: their laws, and that every backend walks on the same ones."""

import pytest
import torch

import nerve_fast as nf
from nerve_fast import clusters as rooms
from nerve_fast import reference
from nerve_fast.bench.harness.memory import allocated_on_cpu
from nerve_fast.blocked.cluster_error import cluster_error
from nerve_fast.clusters import Clusters, cluster_keys
from nerve_fast.dispatch.costs import cluster_memory
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.numerics import ERROR_BOUNDS, relative_error
from nerve_fast.ops import eager
from nerve_fast.ops.walk import walked
from nerve_fast.shares import Share

BACKENDS = ("reference", "blocked")
GRID = (9, 11)
TOKENS = 99


def routes(normalization):
    linear = NORMALIZATIONS[normalization].linear
    return ("dense", "streaming", *["factorized"] * linear)


def means_of_heads(k):
    return torch.full(k.shape[:-2], 1 / k.shape[-3], dtype=torch.float64)


def repeated(k, distinct, generator):
    """Keys of ``distinct`` tokens, again and again in no order."""
    return k[..., torch.randint(distinct, k.shape[-2:-1], generator=generator), :]


@pytest.mark.parametrize("dtype", ERROR_BOUNDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_as_many_clusters_as_tokens_are_the_exact_walk(make_qk, make_prior, backend, dtype):
    q, k = make_qk(2, 3, TOKENS, 8, dtype=dtype)
    G = make_prior(2, TOKENS, 4, dtype=dtype)
    exact, many = (
        nf.random_walk(q, k, G, GRID, nf.NerveConfig(global_keys=count), backend=backend)
        for count in (None, TOKENS)
    )
    assert torch.equal(exact, many)


@pytest.mark.parametrize("head_dim", [8, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_equal_keys_are_grouped_exactly(
    make_qk, make_prior, generator, normalization, dtype, head_dim
):
    q, k = make_qk(2, 3, TOKENS, head_dim, dtype=dtype)
    k = repeated(k, 12, generator)
    G = make_prior(2, TOKENS, 4, dtype=dtype)
    config = nf.NerveConfig(normalization=normalization)
    exact = nf.random_walk(q, k, G, GRID, config, backend="reference")
    for count in (12, 20):
        grouped = config.replace(global_keys=count)
        for route in routes(normalization):
            out = nf.random_walk(q, k, G, GRID, grouped, backend="blocked", route=route)
            assert relative_error(out, exact) <= ERROR_BOUNDS[dtype], (count, route)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_backends_agree_on_their_own_clusters(make_qk, make_prior, normalization):
    q, k = make_qk(2, 3, TOKENS, 8, dtype=torch.float32)
    G = make_prior(2, TOKENS, 4, dtype=torch.float32)
    weights = make_prior(2, 3, dtype=torch.float32)
    config = nf.NerveConfig(normalization=normalization, global_keys=17)
    wide = (x.double() for x in (q, k, G))
    expected = nf.random_walk(
        *wide, GRID, config, head_weights=weights.double(), backend="reference"
    )
    exact = nf.random_walk(q, k, G, GRID, config.replace(global_keys=None), head_weights=weights)
    assert relative_error(exact, expected) > 1e-3
    for route in routes(normalization):
        out = nf.random_walk(
            q, k, G, GRID, config, head_weights=weights, backend="blocked", route=route
        )
        assert relative_error(out, expected) <= 1e-5, route


@pytest.mark.parametrize("normalization", [n for n in NORMALIZATIONS if n != "l1"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_prior_stays_as_it_is(make_qk, make_prior, backend, normalization):
    q, k = make_qk(3, TOKENS, 8)
    G = make_prior(1, 4).expand(TOKENS, 4)
    config = nf.NerveConfig(normalization=normalization, global_keys=7)
    out = nf.random_walk(q, k, G, GRID, config, backend=backend)
    torch.testing.assert_close(out, G)
    varied = make_prior(TOKENS, 4)
    out = nf.random_walk(q, k, varied, GRID, config, backend=backend)
    torch.testing.assert_close(out.sum(-1), varied.sum(-1))


@pytest.mark.parametrize("head_dim", [8, 40])
def test_clusters_are_the_same_to_the_bit_in_every_run(make_qk, make_prior, head_dim):
    q, k = make_qk(2, 3, TOKENS, head_dim, dtype=torch.float32)
    G = make_prior(2, TOKENS, 4, dtype=torch.float32)
    config = nf.NerveConfig(global_keys=20)
    state = torch.random.get_rng_state()
    first = nf.random_walk(q, k, G, GRID, config)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(nf.random_walk(q, k, G, GRID, config), first)
    weights = means_of_heads(k)
    found = cluster_keys(k, weights, 20).assignment
    assert torch.equal(cluster_keys(k.double(), weights, 20).assignment, found)
    # Another scale, and weights rounded otherwise, make no other affinity.
    assert torch.equal(cluster_keys(k * 2.0**90, weights, 20).assignment, found)
    rounded = weights.float() * (1 + 3e-7)
    assert torch.equal(cluster_keys(k, rounded, 20).assignment, found)


@pytest.mark.parametrize("count", [1, 5, 60])
def test_each_token_is_where_it_is_nearest(make_qk, monkeypatch, count):
    _, k = make_qk(3, 500, 8, dtype=torch.float32)
    monkeypatch.setattr(rooms, "SAMPLE", 120)
    weights = torch.tensor([0.6, 0.3, 0.1])
    found = cluster_keys(k, weights, count)
    assert int(found.sizes.sum()) == 500
    assert torch.equal(found.sizes, torch.bincount(found.assignment, minlength=count))
    # In small blocks as in large ones.
    monkeypatch.setattr(rooms, "CPU_BLOCK_BYTES", 1)
    assert torch.equal(cluster_keys(k, weights, count).assignment, found.assignment)
    # No cluster's mean is much nearer than the own one: a start on a sample, 4 rounds.
    unit = torch.nn.functional.normalize(k, dim=-1) * weights.sqrt()[:, None, None]
    points = unit.transpose(0, 1).flatten(1).double()
    centres = found.means(points)
    own = (points - centres[found.assignment]).square().sum(-1)
    random = torch.randperm(500, generator=torch.Generator().manual_seed(1)) % count
    drawn = points - Clusters.of(random, count).means(points)[random]
    assert own.mean() <= drawn.square().sum(-1).mean()
    if count == 60:
        assert own.mean() < 0.8 * drawn.square().sum(-1).mean()


def test_seeds_stay_clusters_of_their_own(make_qk):
    _, k = make_qk(3, TOKENS, 8)
    G = torch.zeros(TOKENS, 2)
    G[40:46, 1] = 1
    weights = means_of_heads(k)
    found = cluster_keys(k, weights, 20, G)
    assert found.sizes[found.assignment[40:46]].tolist() == [1] * 6
    assert found.sizes.sum() == TOKENS
    # More of them than half of the clusters share these, and none with another token.
    G[20:60, 0] = 1
    found = cluster_keys(k, weights, 20, G).assignment
    seeded = set(found[20:60].tolist())
    assert len(seeded) <= 10
    assert not seeded & {*found[:20].tolist(), *found[60:].tolist()}
    # A prior of words marks all tokens, which sets none of them apart.
    every = cluster_keys(k, weights, 20, torch.ones(TOKENS, 2)).assignment
    assert torch.equal(every, cluster_keys(k, weights, 20).assignment)
    assert cluster_keys(k, weights, 1, G).sizes.tolist() == [TOKENS]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_sums_and_means_are_those_of_each_cluster(generator, dtype):
    x = torch.randn(2, 300, 70, generator=generator, dtype=torch.float64).to(dtype)
    assignment = torch.randint(9, (2, 300), generator=generator)
    assignment[assignment == 4] = 3
    found = Clusters.of(assignment, 10)
    sums, means = found.sums(x), found.means(x)
    assert sums.dtype == means.dtype == torch.promote_types(dtype, torch.float32)
    for member in range(2):
        for cluster in range(10):
            own = x[member][assignment[member] == cluster].to(sums.dtype)
            torch.testing.assert_close(sums[member, cluster], own.sum(0), rtol=1e-4, atol=1e-4)
            if len(own):
                torch.testing.assert_close(means[member, cluster], own.mean(0))
    assert found.sizes[:, 4].tolist() == found.sizes[:, 9].tolist() == [0, 0]
    # An empty one is none that a row could be nearest to.
    assert found.sizes[:, 0].min() > 0
    some = means[:, 0]
    assert torch.equal(means[:, 4], some)
    assert torch.equal(means[:, 9], some)
    for one, member in zip(found.members(), range(2), strict=True):
        assert torch.equal(one.sums(x[member]), sums[member])


def test_a_sum_of_very_many_rounds_little(generator):
    x = torch.rand(200_000, 1, generator=generator)
    total = Clusters.of(torch.zeros(len(x), dtype=torch.int64), 1).sums(x)
    assert relative_error(total, x.double().sum(0, keepdim=True)) < 5e-6


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradients_are_those_of_the_reference(make_qk, make_prior, normalization):
    inputs = [*make_qk(2, TOKENS, 5), make_prior(TOKENS, 3)]
    config = nf.NerveConfig(normalization=normalization, steps=2, temperature=0.5, global_keys=13)

    def gradients(**options):
        leaves = [x.clone().requires_grad_() for x in inputs]
        nf.random_walk(*leaves, GRID, config, **options).square().sum().backward()
        return [x.grad for x in leaves]

    expected = gradients(backend="reference")
    for route in routes(normalization):
        found = gradients(backend="blocked", route=route)
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_error_is_that_of_the_first_step(make_qk, make_prior, normalization):
    q, k = make_qk(3, TOKENS, 8)
    G, weights = make_prior(TOKENS, 4), make_prior(3)
    config = nf.NerveConfig(normalization=normalization, global_keys=13)
    clusters = cluster_keys(k, weights, 13, G)
    A = reference.cosine_affinity(q, k, weights)
    exact, approximate = (
        reference.walk.transition_global(x, config.rule, config.temperature) @ G
        for x in (A, reference.walk.merged(A, clusters.assignment))
    )
    found = cluster_error(q, k, G, weights, config, clusters)
    assert found.rows == TOKENS
    assert found.relative == pytest.approx(relative_error(approximate, exact))
    assert found.equal_labels == (exact.argmax(-1) == approximate.argmax(-1)).double().mean()
    assert found.relative > 0
    same = cluster_error(q, k, G, weights, config, Clusters.of(torch.arange(TOKENS), TOKENS))
    assert same.relative < 1e-12
    assert same.equal_labels == 1
    nothing = cluster_error(q, k, 0 * G, weights, config, clusters)
    assert (nothing.relative, nothing.equal_labels) == (0, 1)


def test_given_clusters_are_walked_on(make_qk, make_prior, generator):
    q, k = make_qk(2, 3, TOKENS, 8)
    G, weights = make_prior(2, TOKENS, 4), make_prior(2, 3)
    own = Clusters.of(torch.randint(13, (2, TOKENS), generator=generator), 13)
    config = nf.NerveConfig(global_keys=13)
    options = {"head_weights": weights, "clusters": own}
    out = walked(q, k, G, GRID, config, **options).probabilities
    expected = reference.random_walk(q, k, G, GRID, config, weights, clusters=own).probabilities
    torch.testing.assert_close(out, expected)
    assert relative_error(nf.random_walk(q, k, G, GRID, config, head_weights=weights), out) > 1e-4
    with pytest.raises(nf.InputError, match="clusters holds 13 of them; expected .* is 12"):
        walked(q, k, G, GRID, config.replace(global_keys=12), **options)


def test_nothing_is_clustered_where_nothing_moves_globally(make_qk, make_prior, monkeypatch):
    q, k = make_qk(3, TOKENS, 8)
    G = make_prior(TOKENS, 4)
    monkeypatch.setattr(eager, "cluster_keys", None)
    for changes in ({"beta": 0.0}, {"alpha": 0.0}, {"steps": 0}):
        config = nf.NerveConfig(global_keys=5, **changes)
        exact = config.replace(global_keys=None)
        out = nf.random_walk(q, k, G, GRID, config)
        assert torch.equal(out, nf.random_walk(q, k, G, GRID, exact))


def test_keys_are_not_clustered_while_a_graph_is_recorded(make_qk, make_prior, monkeypatch):
    monkeypatch.setattr(eager, "is_capturing", lambda device: True)
    q, k = make_qk(3, TOKENS, 8)
    with pytest.raises(nf.InputError, match="global_keys is set while a CUDA graph is recorded"):
        nf.random_walk(q, k, make_prior(TOKENS, 4), GRID, nf.NerveConfig(global_keys=5))


@pytest.mark.parametrize("count", [5, 60])
def test_many_channels_are_compared_by_their_principal_components(generator, count):
    """Keys of low rank, and a little noise in all channels."""
    basis = torch.randn(3, 6, 40, generator=generator)
    mixed = torch.randn(500, 3, 6, generator=generator)
    k = torch.einsum("nhr,hrd->hnd", mixed, basis)
    k = k + 0.01 * torch.randn(k.shape, generator=generator)
    weights = torch.tensor([0.6, 0.3, 0.1])
    unit = torch.nn.functional.normalize(k, dim=-1) * weights.sqrt()[:, None, None]
    whole = unit.transpose(0, 1).flatten(1)
    points = rooms._Points(k, weights.sqrt(), torch.arange(400), Share((50, 10)))
    assert points.channels == rooms.COMPONENTS < whole.shape[1]
    near = points.of(torch.arange(500))
    assert relative_error(torch.cdist(near, near), torch.cdist(whole, whole)) < 0.01
    # So tokens are as near to their clusters as with all channels.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rooms, "COMPONENTS", 200)
        all_channels = cluster_keys(k, weights, count)
    few = cluster_keys(k, weights, count)
    spread = [
        (whole - found.means(whole)[found.assignment]).square().sum()
        for found in (few, all_channels)
    ]
    assert spread[0] <= 1.02 * spread[1]


@pytest.mark.parametrize("channels", [1, 64, 65, 300])
@pytest.mark.parametrize("kind", ["zero", "equal", "weightless", "huge", "tiny"])
def test_keys_without_variety_are_clustered_too(generator, kind, channels):
    k = torch.randn(2, TOKENS, channels, generator=generator)
    weights = torch.tensor([0.7, 0.3])
    if kind == "zero":
        k = torch.zeros_like(k)
    elif kind == "equal":
        k = k[:, :1].expand_as(k)
    else:
        weights = weights * {"weightless": 0.0, "huge": 1e38, "tiny": 1e-38}[kind]
    found = cluster_keys(k, weights, 20)
    assert found.count == 20
    assert int(found.sizes.sum()) == TOKENS
    if kind in ("huge", "tiny"):
        # Clusters do not depend on the scale.
        assert torch.equal(
            found.assignment, cluster_keys(k, weights / weights.sum(), 20).assignment
        )
    else:
        # What is equal has one cluster.
        assert found.sizes.max() == TOKENS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "count"), [(1, 3), (1, 700), (5, 64), (20, 20), (20, 700)])
def test_clusters_take_no_more_memory_than_is_planned(generator, dtype, heads, count):
    tokens = 100 * 130
    k = torch.randn(heads, tokens, 64, generator=generator).to(dtype)
    weights = torch.full((heads,), 1 / heads)
    # Seeds at so many tokens that they share half of the clusters.
    G = torch.zeros(tokens, 2)
    G[: tokens // 3] = 1
    plan = nf.plan(
        k.shape, 2, config=nf.NerveConfig(global_keys=count), dtype=dtype, weights_given=True
    )
    planned = cluster_memory(plan.problem)
    for prior in (None, G):
        assert (
            allocated_on_cpu(lambda prior=prior: cluster_keys(k, weights, count, prior)) <= planned
        )


@pytest.mark.parametrize("taken", ["points", "picked"])
def test_rows_of_a_view_are_taken_without_copying_all_of_it(taken):
    """Queries and keys of networks come as ``(N, H, D)`` with their axes exchanged."""
    k = torch.randn(20_000, 2, 16).transpose(0, 1)
    tokens = torch.arange(0, 20_000, 300)
    take = {
        "points": rooms._Points(k, torch.ones(2), tokens[:0], Share((200, 100))).of,
        "picked": lambda rows: Share((200, 100)).picked(k, rows),
    }[taken]
    assert allocated_on_cpu(lambda: take(tokens)) < k.nbytes / 10
