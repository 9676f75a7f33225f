"""Every route as kernels against the float64 reference, within the bounds of the numerical bar."""

import math

import pytest
import torch
import triton
import triton.language as tl

import nerve_fast as nf
from nerve_fast import reference
from nerve_fast.clusters import Clusters, cluster_keys
from nerve_fast.kernels import (
    configs,
    dense,
    factorized,
    launch,
    operands,
    streaming,
    walk,
)
from nerve_fast.kernels.launch import Config, fp8_of
from nerve_fast.kernels.steps import collect
from nerve_fast.normalization import NORMALIZATIONS, Normalization
from nerve_fast.numerics import ERROR_BOUNDS, relative_error

ROUTES = {
    "factorized": {"route": "factorized"},
    "streaming": {"route": "streaming"},
    "dense": {"route": "dense", "stored_rows": 10**6},
    "half dense": {"route": "dense", "stored_rows": 64},
}


def settings(normalization, **changes):
    """Few steps: each is interpreted."""
    return nf.NerveConfig(**{"normalization": normalization, "steps": 2, **changes})


def exact_for(normalization):
    linear = NORMALIZATIONS[normalization].linear
    return [name for name in ROUTES if linear or name != "factorized"]


def truth(q, k, G, grid, config, weights=None, clusters=None):
    """The definition in float64."""
    wide = None if weights is None else weights.double()
    q, k, G = q.double(), k.double(), G.double()
    return reference.random_walk(q, k, G, grid, config, wide, clusters=clusters).probabilities


def check(device, q, k, G, grid, config, weights=None, factor=1.0, expected=None):
    """Every route that is exact agrees with ``expected``, which the reference gives otherwise.

    As a whole, in its worst row, and in its labels.
    """
    clusters = None
    if config.global_keys is not None:
        mean = torch.full(k.shape[:-2], 1 / k.shape[-3])
        clusters = cluster_keys(k, mean, config.global_keys, G)
    if expected is None:
        expected = truth(q, k, G, grid, config, weights, clusters)
    if clusters is not None:
        clusters = Clusters.of(clusters.assignment.to(device), clusters.count)
    bound = factor * ERROR_BOUNDS[q.dtype]
    best = expected.topk(min(2, G.shape[-1]), dim=-1).values
    given = [None if x is None else x.to(device) for x in (q, k, G, weights)]
    for name in exact_for(config.normalization):
        *tensors, on_device = given
        way = {**ROUTES[name], "clusters": clusters}
        walked = walk.random_walk(*tensors, grid, config, on_device, **way)
        assert walked.steps_taken == config.steps
        out = walked.probabilities
        assert out.dtype == G.dtype
        out, error = out.cpu(), relative_error(out, expected)
        assert error <= bound, name
        off = (out.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert off.max() <= 4 * bound, name
        clear = best[..., 0] - best[..., -1] > 10 * error
        assert torch.equal(out.argmax(-1)[clear], expected.argmax(-1)[clear]), name


def related(q, k):
    """Keys near their queries and tokens in groups: cosines up to 1, as in a trained network.

    The groups' tokens are anywhere, so that no span of columns is of little weight to any row.
    """
    groups = q[..., ::17, :].repeat_interleave(17, dim=-2)[..., : q.shape[-2], :]
    groups = groups[..., torch.randperm(q.shape[-2], generator=torch.Generator().manual_seed(0)), :]
    return (groups + 0.5 * q).to(q.dtype), (groups + 0.5 * k).to(q.dtype)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_routes_agree_with_the_reference(make_qk, make_prior, device, dtype, normalization):
    q, k = related(*make_qk(2, 77, 80, dtype=dtype))
    G = make_prior(77, 21, dtype=dtype)
    check(device, q, k, G, (7, 11), settings(normalization))


# What can go wrong on a GPU and not in the interpreter, done to the kernels on purpose.


@triton.jit
def collect_but_one(PARTIAL, ARRIVED, i_out, splits, BM: tl.constexpr, BK: tl.constexpr):
    return collect(PARTIAL, ARRIVED, i_out, splits - 1, BM, BK)


@triton.jit
def collect_without_reset(PARTIAL, ARRIVED, i_out, splits, BM: tl.constexpr, BK: tl.constexpr):
    b_acc = collect(PARTIAL, ARRIVED, i_out, splits, BM, BK)
    tl.store(ARRIVED + i_out, splits)
    return b_acc


def lost_share(monkeypatch):
    for room in (streaming, dense, factorized):
        monkeypatch.setattr(room, "collect", collect_but_one)


def wrong_counter(monkeypatch):
    """Nobody finds itself last in the next step, over memory that holds anything."""
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    for room in (streaming, dense, factorized):
        monkeypatch.setattr(room, "collect", collect_without_reset)


def stale_buffer(monkeypatch):
    """Every step reads the values that the first one read."""
    values = {}

    def stale(self, Y, V):
        read = right(self, Y, V)
        return values.setdefault(id(self), read.clone())

    right = operands.Operands.values
    monkeypatch.setattr(operands.Operands, "values", stale)


def skipped_tile(monkeypatch):
    """The last program does not run, over memory that holds what an earlier run left there."""
    monkeypatch.setattr(
        operands,
        "launch",
        lambda kernel, programs, config, **arguments: right(
            kernel, programs - 1, config, **arguments
        ),
    )
    right = launch.launch
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)


@pytest.mark.parametrize(
    ("normalization", "route"),
    [("softmax", "streaming"), ("relu", "half dense"), ("l1", "factorized")],
)
def test_faults_are_seen(make_qk, make_prior, device, monkeypatch, normalization, route):
    q, k = related(*make_qk(1, 143, 40, dtype=torch.float16))
    G = make_prior(143, 4, dtype=torch.float16)
    config = settings(normalization, beta=1.0)
    monkeypatch.setattr(operands.Operands, "_splits", lambda self, tiles, block_columns: 2)
    monkeypatch.setitem(globals(), "ROUTES", {route: ROUTES[route]})
    check(device, q, k, G, (11, 13), config)
    for fault in (lost_share, wrong_counter, stale_buffer, skipped_tile):
        print(fault.__name__)
        with monkeypatch.context() as patch:
            fault(patch)
            with pytest.raises(AssertionError, match=route):
                check(device, q, k, G, (11, 13), config)


@pytest.mark.parametrize(
    "normalization", ["softmax", pytest.param("shift", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("grid", "labels", "changes"),
    [
        ((1, 1), 3, {}),
        ((7, 9), 1, {}),
        ((5, 13), 171, {}),
        ((2, 49), 15, {"radius": 2}),
        ((6, 11), 4, {"radius": 4, "self_affinity": 0.0}),
        ((6, 11), 4, {"alpha": 0.0}),
        ((6, 11), 4, {"alpha": 1.0}),
        ((6, 11), 4, {"beta": 0.0}),
        ((6, 11), 4, {"beta": 1.0}),
        ((6, 11), 4, {"steps": 0}),
        ((6, 11), 4, {"steps": 1}),
        ((6, 11), 4, {"temperature": 0.01}),
        ((6, 11), 4, {"sharpness": 0.0}),
        ((6, 11), 4, {"global_keys": 17}),
        ((13, 10), 4, {"global_keys": 3, "beta": 1.0}),
    ],
)
def test_routes_agree_at_the_edges(
    make_qk, make_prior, device, normalization, grid, labels, changes
):
    q, k = related(*make_qk(1, grid[0] * grid[1], 40, dtype=torch.float32))
    G = make_prior(grid[0] * grid[1], labels, dtype=torch.float32)
    config = settings(normalization, **changes)
    check(device, q, k, G, grid, config)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("weight", [0.01, 3.0, 40.0])
def test_weights_are_used_as_given(make_qk, make_prior, device, normalization, weight):
    q, k = related(*make_qk(2, 35, 40, dtype=torch.float32))
    weights = weight * make_prior(2, dtype=torch.float32)
    G = make_prior(35, 4, dtype=torch.float32)
    config = settings(normalization)
    # Logits of up to 800 lose digits in float32 before anyone can sum them.
    check(device, q, k, G, (5, 7), config, weights, factor=max(weight, 1))


@pytest.mark.parametrize("normalization", [n for n in NORMALIZATIONS if n != "softmax"])
def test_weights_of_any_size_stay_within_16_bits(make_qk, make_prior, device, normalization):
    q, k = related(*make_qk(2, 70, 24, dtype=torch.float16))
    weights = torch.tensor([1e6, 3e6])
    G = make_prior(70, 4, dtype=torch.float16)
    check(device, q, k, G, (7, 10), settings(normalization), weights)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_batches_views_and_priors_of_another_dtype(make_qk, make_prior, device, normalization):
    q, k = related(*make_qk(1, 2, 2, 70, 24, dtype=torch.float16))
    G = make_prior(1, 2, 5, 70, dtype=torch.float32).mT
    q, k = (x.transpose(-3, -2).contiguous().transpose(-3, -2) for x in (q, k))
    check(device, q, k, G, (7, 10), settings(normalization))


def test_each_member_of_a_batch_has_its_own_moments(make_qk, make_prior, device):
    q, k = make_qk(2, 2, 35, 40, dtype=torch.float32)
    G = make_prior(2, 35, 3, dtype=torch.float32)
    # Kernels that write and read the moments take blocks of their own.
    with configs.forcing("factorized_step", Config.of(4, 1, BM=64, BC=32)):
        check(device, q, k, G, (5, 7), settings("shift"))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_channels_that_are_not_kept(make_qk, make_prior, device, dtype, normalization):
    reloading = Config.of(4, 1, BM=32, BN=16, BC=32, RESIDENT=False)
    q, k = related(*make_qk(3, 35, 40, dtype=dtype))
    G = make_prior(35, 4, dtype=dtype)
    config = settings(normalization)
    with (
        configs.forcing("streaming_step", reloading),
        configs.forcing("row_statistic", reloading),
    ):
        check(device, q, k, G, (5, 7), config)


@pytest.mark.parametrize("shape", [(7, 64), (3, 64), (2, 64), (1, 40)])
@pytest.mark.parametrize("normalization", ["softmax", "l1"])
def test_channels_in_blocks_of_unequal_width(
    make_qk, make_prior, device, monkeypatch, normalization, shape
):
    """Of 256, then of 128 and 64 where they are needed."""
    wide = Config.of(4, 1, BM=64, BN=16, BC=256, RESIDENT=True)
    monkeypatch.setitem(globals(), "ROUTES", {"streaming": ROUTES["streaming"]})
    q, k = related(*make_qk(shape[0], 35, shape[1], dtype=torch.float16))
    G = make_prior(35, 4, dtype=torch.float16)
    with configs.forcing("streaming_step", wide), configs.forcing("row_statistic", wide):
        check(device, q, k, G, (5, 7), settings(normalization, beta=1.0))


@pytest.mark.parametrize(("splits", "kind"), [(1, torch.float32), (3, torch.float16)], ids=str)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_columns_in_any_number_of_splits(
    make_qk, make_prior, device, monkeypatch, normalization, splits, kind
):
    monkeypatch.setattr(
        operands.Operands, "_splits", lambda self, tiles, block_columns: splits, raising=True
    )
    q, k = related(*make_qk(2, 77, 40, dtype=kind))
    G = make_prior(77, 4, dtype=kind)
    check(device, q, k, G, (7, 11), settings(normalization))


@pytest.mark.parametrize("normalization", ["softmax", "relu"])
def test_rows_without_mass_keep_their_walkers(make_qk, make_prior, device, dtype, normalization):
    q, k = make_qk(1, 66, 16, dtype=dtype)
    q, k = q.abs(), k.abs()
    q[:, :7] *= -1
    G = make_prior(66, 3, dtype=dtype)
    config = settings(normalization, temperature=0.01, self_affinity=0.0)
    check(device, q, k, G, (6, 11), config)


@pytest.mark.parametrize("normalization", ["softmax", "relu", "shift"])
def test_a_constant_prior_is_a_fixed_point(make_qk, device, dtype, normalization):
    q, k = related(*make_qk(2, 35, 40, dtype=dtype))
    G = torch.full((35, 3), 0.25, dtype=dtype)
    for name in exact_for(normalization):
        config = settings(normalization)
        P = walk.random_walk(
            q.to(device), k.to(device), G.to(device), (5, 7), config, None, **ROUTES[name]
        ).probabilities
        # Rounding of the result, and little more.
        torch.testing.assert_close(P.cpu(), G, rtol=max(torch.finfo(dtype).eps, 2e-6), atol=0)


@pytest.fixture
def rounded_by_torch(device, monkeypatch):
    """Torch rounds to float8 for the interpreter, which loses the carry: its 1.98 becomes 1."""
    if device.type == "cuda":
        return
    stored = dense.Dense._stored

    def rounded(self, rows, dtype, offsets):
        if dtype not in dense.FP8:
            return stored(self, rows, dtype, offsets)
        wide = stored(self, rows, torch.float32, offsets)
        return (wide * self._headroom(dtype)).to(dtype)

    monkeypatch.setattr(dense.Dense, "_stored", rounded)


@pytest.mark.usefixtures("rounded_by_torch")
@pytest.mark.parametrize("stored", dense.FP8)
@pytest.mark.parametrize("normalization", [x.name for x in NORMALIZATIONS.values() if not x.signed])
def test_a_stored_matrix_of_8_bits(make_qk, make_prior, device, normalization, stored):
    """Both kinds of float8: the largest of AMD's is 240, and what is above becomes NaN."""
    if device.type == "cuda" and stored != fp8_of(device):
        pytest.skip("this GPU does not convert this float8")
    q, k = related(*make_qk(3, 77, 40, dtype=torch.float16))
    G = make_prior(77, 21, dtype=torch.float32)
    config = settings(normalization)
    out, wide = (
        walk.random_walk(
            *(x.to(device) for x in (q, k, G)),
            (7, 11),
            config,
            None,
            route="dense",
            stored_rows=77,
            stored_dtype=dtype,
        ).probabilities
        for dtype in (stored, torch.float16)
    )
    assert not torch.equal(out, wide)
    assert relative_error(out, truth(q, k, G, (7, 11), config)) <= 1e-2


def test_8_bits_need_a_sum_that_is_the_row_sum(make_qk, make_prior, device):
    q, k = (x.to(device) for x in make_qk(1, 6, 16, dtype=torch.float16))
    with pytest.raises(
        ValueError, match="stored_dtype is torch.float8_e4m3fn, and with the .* 'l1'"
    ):
        walk.random_walk(
            q,
            k,
            make_prior(6, 2).float().to(device),
            (2, 3),
            nf.NerveConfig(normalization="l1"),
            None,
            route="dense",
            stored_rows=6,
            stored_dtype=torch.float8_e4m3fn,
        )


def test_equal_calls_give_equal_results_to_the_bit(make_qk, make_prior, device):
    q, k = (x.to(device) for x in related(*make_qk(2, 35, 40, dtype=torch.float32)))
    G = make_prior(35, 4, dtype=torch.float32).to(device)
    for route in ("streaming", "factorized"):
        config = settings("shift")
        first, second = (
            walk.random_walk(q, k, G, (5, 7), config, None, route=route).probabilities
            for _ in range(2)
        )
        assert torch.equal(first, second)


def by_hand(q, k, G, grid, config, normalization):
    """The walk of an affine normalisation, from what design and slides say, in float64."""
    q, k, Y = q.double(), k.double(), G.double()
    weights = nf.entropy_weights(nf.head_entropy(q, k, backend="reference"), config.sharpness)
    A = (q / q.norm(dim=-1, keepdim=True)) @ (k / k.norm(dim=-1, keepdim=True)).mT
    A = normalization.scale * (weights[:, None, None] * A).sum(0) + normalization.offset
    if normalization.clamped:
        A = A.clamp(min=0)
    y, x = torch.arange(len(A)) // grid[1], torch.arange(len(A)) % grid[1]
    near = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs()) <= config.radius
    near = A.where(near, 0).fill_diagonal_(config.self_affinity)
    S = sum(
        share * matrix / matrix.abs().sum(-1, keepdim=True)
        for share, matrix in ((config.beta, A), (1 - config.beta, near))
    )
    for _ in range(config.steps):
        Y = G.double() + config.alpha * S @ Y
    return Y / sum(config.alpha**t for t in range(config.steps + 1))


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": 2.0, "offset": 0.5},
        {"scale": 0.75, "offset": 3.0},
        {"scale": 5e4, "offset": 5e4},
        {"scale": 3e-6, "offset": 1e-6},
        {"offset": 0.25, "clamped": True},
    ],
)
def test_a_fifth_normalization_is_one_entry(
    make_qk, make_prior, device, dtype, monkeypatch, fields
):
    fifth = Normalization("fifth", **fields)
    monkeypatch.setitem(NORMALIZATIONS, "fifth", fifth)
    q, k = related(*make_qk(2, 35, 40, dtype=dtype))
    G = make_prior(35, 4, dtype=dtype)
    config = settings("fifth", self_affinity=fifth.scale)
    check(device, q, k, G, (5, 7), config, expected=by_hand(q, k, G, (5, 7), config, fifth))


@pytest.mark.parametrize("changes", [{}, {"beta": 0.0}, {"alpha": 1.0}, {"alpha": 0.0}])
@pytest.mark.parametrize("name", ["streaming", "half dense"])
def test_steps_on_the_way_are_walks_of_so_many_steps(make_qk, make_prior, device, changes, name):
    q, k = (x.to(device) for x in make_qk(2, 77, 24, dtype=torch.float32))
    G = make_prior(77, 19, dtype=torch.float32).to(device)

    def walked(steps, **more):
        config = settings("softmax", steps=steps, **changes)
        return walk.random_walk(q, k, G, (7, 11), config, None, **ROUTES[name], **more)

    seen = []
    some = walked(2, return_steps=(4, 0, 2, 1), on_step=lambda: seen.append(1))
    assert list(some.at_steps) == [0, 1, 2, 4]
    assert some.steps_taken == 2
    assert len(seen) == (4 if changes.get("alpha") != 0 else 0)
    assert torch.equal(some.probabilities, some.at_steps[2])
    for steps, P in some.at_steps.items():
        assert torch.equal(P, walked(steps).probabilities)
        assert P.is_contiguous()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("changes", [{}, {"beta": 0.0}, {"alpha": 0.6, "tolerance": 1e-2}])
def test_the_limit_is_within_its_tolerance(make_qk, make_prior, device, normalization, changes):
    changes = {"alpha": 0.4, "tolerance": 1e-3, "steps": None, **changes}
    q, k = related(*make_qk(2, 35, 16, dtype=torch.float32))
    G = make_prior(35, 3, dtype=torch.float32)
    config = settings(normalization, **changes)
    # What is left of the series after 80 steps is under 1e-17.
    far = truth(q, k, G, (5, 7), config.replace(steps=80))
    for name in ("factorized" if NORMALIZATIONS[normalization].linear else "half dense",):
        given = (x.to(device) for x in (q, k, G))
        walked = walk.random_walk(*given, (5, 7), config, None, **ROUTES[name], return_steps=(3,))
        off = (walked.probabilities.cpu() - far).abs().sum(-1).max().item()
        assert off < config.tolerance
        assert 4 <= walked.steps_taken <= math.ceil(math.log(config.tolerance, config.alpha))
        early = truth(q, k, G, (5, 7), config.replace(steps=3))
        assert relative_error(walked.at_steps[3], early) <= ERROR_BOUNDS[torch.float32]


def test_steps_wanted_beyond_the_limit(make_qk, make_prior, device):
    q, k = (x.to(device) for x in make_qk(1, 20, 16, dtype=torch.float32))
    G = make_prior(20, 3, dtype=torch.float32).to(device)
    config = settings("softmax", alpha=0.3, steps=None, tolerance=1e-2)
    walked = walk.random_walk(q, k, G, (4, 5), config, None, route="streaming", return_steps=(9,))
    assert walked.steps_taken == 4
    nine = walk.random_walk(q, k, G, (4, 5), config.replace(steps=9), None, route="streaming")
    assert relative_error(walked.at_steps[9], nine.probabilities) <= 1e-6


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_limit_that_is_none_ends_too(make_qk, make_prior, device, wrong):
    q, k = (x.to(device) for x in make_qk(1, 20, 16, dtype=torch.float32))
    G = make_prior(20, 3, dtype=torch.float32).to(device)
    G[3, 1] = wrong
    config = settings("softmax", steps=None)
    walked = walk.random_walk(q, k, G, (4, 5), config, None, route="streaming")
    assert not torch.isfinite(walked.probabilities[:, 1]).any()
    assert walked.steps_taken == walk.CHECK_EVERY


def test_a_tolerance_below_rounding_ends_too(make_qk, make_prior, device):
    q, k = (x.to(device) for x in make_qk(1, 20, 16, dtype=torch.float32))
    G = make_prior(20, 3, dtype=torch.float32).to(device)
    config = settings("softmax", alpha=0.5, steps=None, tolerance=1e-15)
    walked = walk.random_walk(q, k, G, (4, 5), config, None, route="streaming")
    assert walked.steps_taken <= 60
    assert torch.isfinite(walked.probabilities).all()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("where", ["q", "k", "prior"])
def test_nan_reaches_the_result(make_qk, make_prior, device, normalization, where):
    """The interpreter drops NaN from maxima just as GPUs do."""
    q, k = make_qk(1, 35, 16, dtype=torch.float32)
    G = make_prior(35, 3, dtype=torch.float32)
    w = torch.ones(1)
    {"q": q[0], "k": k[0], "prior": G}[where][17, 1] = torch.nan
    given = [x.to(device) for x in (q, k, G)]
    for beta in (0.0, 1.0):
        config = settings(normalization, beta=beta, steps=1)
        expected = truth(q, k, G, (5, 7), config, w).isnan()
        assert expected.any()
        for name in exact_for(normalization) if beta else ["streaming"]:
            walked = walk.random_walk(*given, (5, 7), config, w.to(device), **ROUTES[name])
            out = walked.probabilities.cpu().isnan()
            if beta == 0:
                # The reference spreads 0 · NaN to tokens outside the window, too.
                assert out[16:19].any()
            else:
                assert torch.equal(out, expected), name


@pytest.mark.parametrize("where", [0, 1])
def test_nan_reaches_the_result_through_entropies(make_qk, make_prior, device, where):
    qk = [x.to(device) for x in make_qk(2, 35, 16, dtype=torch.float32)]
    qk[where][0, 17, 1] = torch.nan
    G = make_prior(35, 3, dtype=torch.float32).to(device)
    walked = walk.random_walk(*qk, G, (5, 7), settings("softmax", steps=1), None, route="streaming")
    assert walked.probabilities.isnan().all()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_clusters_of_each_member_of_a_batch(make_qk, make_prior, device, dtype, normalization):
    q, k = related(*make_qk(2, 2, 35, 24, dtype=dtype))
    G = make_prior(2, 35, 3, dtype=torch.float32)
    check(device, q, k, G, (5, 7), settings(normalization, global_keys=9))
