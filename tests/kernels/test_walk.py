"""Every route as kernels against the float64 reference, within the bounds of the numerical bar."""

import pytest
import torch

import nerve_fast as nf
from nerve_fast import reference
from nerve_fast.kernels import configs, walk
from nerve_fast.kernels.launch import Config, fp8_of
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.numerics import ERROR_BOUNDS

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
    linear = normalization in ("shift", "l1")
    return [name for name in ROUTES if linear or name != "factorized"]


def check(device, q, k, G, grid, config, weights=None, factor=1.0):
    wide = None if weights is None else weights.double()
    expected = reference.random_walk(q.double(), k.double(), G.double(), grid, config, wide)
    best = expected.topk(min(2, G.shape[-1]), dim=-1).values
    given = [None if x is None else x.to(device) for x in (q, k, G, weights)]
    for name in exact_for(config.normalization):
        *tensors, on_device = given
        out = walk.random_walk(*tensors, grid, config, on_device, **ROUTES[name])
        assert out.dtype == G.dtype
        out = out.double().cpu()
        error = (out - expected).norm() / expected.norm()
        assert error <= factor * ERROR_BOUNDS[q.dtype], name
        clear = best[..., 0] - best[..., -1] > 10 * error
        assert torch.equal(out.argmax(-1)[clear], expected.argmax(-1)[clear]), name


def related(q, k):
    """Keys near their queries and tokens in groups: cosines up to 1, as in a trained network."""
    groups = q[..., ::17, :].repeat_interleave(17, dim=-2)[..., : q.shape[-2], :]
    return (groups + 0.5 * q).to(q.dtype), (groups + 0.5 * k).to(q.dtype)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_routes_agree_with_the_reference(make_qk, make_prior, device, dtype, normalization):
    q, k = related(*make_qk(5, 143, 40, dtype=dtype))
    G = make_prior(143, 21, dtype=dtype)
    check(device, q, k, G, (11, 13), settings(normalization))


@pytest.mark.parametrize("normalization", ["softmax", "shift"])
@pytest.mark.parametrize(
    ("grid", "labels", "changes"),
    [
        ((1, 1), 3, {}),
        ((7, 9), 1, {}),
        ((5, 13), 171, {}),
        ((2, 97), 15, {"radius": 2}),
        ((6, 11), 4, {"radius": 4, "self_affinity": 0.0}),
        ((6, 11), 4, {"alpha": 0.0}),
        ((6, 11), 4, {"alpha": 1.0}),
        ((6, 11), 4, {"beta": 0.0}),
        ((6, 11), 4, {"beta": 1.0}),
        ((6, 11), 4, {"steps": 0}),
        ((6, 11), 4, {"steps": 1}),
        ((6, 11), 4, {"temperature": 0.01}),
        ((6, 11), 4, {"sharpness": 0.0}),
        ((6, 11), 4, {"global_stride": 2}),
        ((13, 10), 4, {"global_stride": 4}),
    ],
)
def test_routes_agree_at_the_edges(
    make_qk, make_prior, device, normalization, grid, labels, changes
):
    q, k = related(*make_qk(1, grid[0] * grid[1], 80, dtype=torch.float32))
    G = make_prior(grid[0] * grid[1], labels, dtype=torch.float32)
    config = settings(normalization, **changes)
    check(device, q, k, G, grid, config)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("weight", [0.01, 3.0, 40.0])
def test_weights_are_used_as_given(make_qk, make_prior, device, normalization, weight):
    q, k = related(*make_qk(2, 143, 40, dtype=torch.float32))
    weights = weight * make_prior(2, dtype=torch.float32)
    G = make_prior(143, 4, dtype=torch.float32)
    config = settings(normalization)
    # Logits of up to 800 lose digits in float32 before anyone can sum them.
    check(device, q, k, G, (11, 13), config, weights, factor=max(weight, 1))


@pytest.mark.parametrize("normalization", ["relu", "l1", "shift"])
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


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_channels_that_are_not_kept(make_qk, make_prior, device, dtype, normalization):
    reloading = Config.of(4, 1, BM=32, BN=16, BC=32, RESIDENT=False)
    q, k = related(*make_qk(3, 77, 40, dtype=dtype))
    G = make_prior(77, 4, dtype=dtype)
    config = settings(normalization)
    with (
        configs.forcing("streaming_step", reloading),
        configs.forcing("row_statistic", reloading),
    ):
        check(device, q, k, G, (7, 11), config)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_columns_in_any_number_of_splits(
    make_qk, make_prior, device, monkeypatch, normalization, splits
):
    monkeypatch.setattr(
        walk._Walk, "_splits", lambda self, tiles, block_columns: splits, raising=True
    )
    q, k = related(*make_qk(2, 143, 40, dtype=torch.float32))
    G = make_prior(143, 4, dtype=torch.float32)
    check(device, q, k, G, (11, 13), settings(normalization))


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
    q, k = related(*make_qk(2, 143, 40, dtype=dtype))
    G = torch.full((143, 3), 0.25, dtype=dtype)
    for name in exact_for(normalization):
        config = settings(normalization)
        P = walk.random_walk(
            q.to(device), k.to(device), G.to(device), (11, 13), config, None, **ROUTES[name]
        )
        torch.testing.assert_close(P.cpu(), G, rtol=2e-3 if dtype.itemsize == 2 else 2e-6, atol=0)


@pytest.fixture
def rounded_by_torch(device, monkeypatch):
    """Torch rounds to float8 for the interpreter, which loses the carry: its 1.98 becomes 1."""
    if device.type == "cuda":
        return
    stored_rows = walk._Walk._numerators

    def numerators(self, rows, dtype, offsets):
        if dtype not in walk.FP8:
            return stored_rows(self, rows, dtype, offsets)
        wide = stored_rows(self, rows, torch.float32, offsets)
        return (wide * self._headroom).to(dtype)

    monkeypatch.setattr(walk._Walk, "_numerators", numerators)


@pytest.mark.usefixtures("rounded_by_torch")
@pytest.mark.parametrize("normalization", ["softmax", "relu", "shift"])
def test_a_stored_matrix_of_8_bits(make_qk, make_prior, device, normalization):
    stored = fp8_of(device)
    if stored is None:
        pytest.skip("this GPU converts no float8")
    q, k = related(*make_qk(5, 143, 40, dtype=torch.float16))
    G = make_prior(143, 21, dtype=torch.float32)
    config = settings(normalization)
    expected = reference.random_walk(q.double(), k.double(), G.double(), (11, 13), config, None)
    out, wide = (
        walk.random_walk(
            *(x.to(device) for x in (q, k, G)),
            (11, 13),
            config,
            None,
            route="dense",
            stored_rows=143,
            stored_dtype=dtype,
        )
        for dtype in (stored, torch.float16)
    )
    assert not torch.equal(out, wide)
    assert (out.double().cpu() - expected).norm() / expected.norm() <= 1e-2


def test_8_bits_need_a_sum_that_is_the_row_sum(make_qk, make_prior, device):
    q, k = (x.to(device) for x in make_qk(1, 6, 16, dtype=torch.float16))
    with pytest.raises(ValueError, match="stored_dtype is float8, whose totals 'l1' has not"):
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
    q, k = (x.to(device) for x in related(*make_qk(2, 143, 40, dtype=torch.float32)))
    G = make_prior(143, 4, dtype=torch.float32).to(device)
    for route in ("streaming", "factorized"):
        config = settings("shift")
        first, second = (
            walk.random_walk(q, k, G, (11, 13), config, None, route=route) for _ in range(2)
        )
        assert torch.equal(first, second)
