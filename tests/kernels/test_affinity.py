import pytest
import torch

from nerve_fast import reference
from nerve_fast.kernels import configs, launch
from nerve_fast.kernels.affinity import cosine_affinity, local_affinity
from nerve_fast.kernels.entropy import head_entropy
from nerve_fast.numerics import ERROR_BOUNDS, relative_error


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(
    "shape", [(5, 143, 64), (1, 77, 40), (2, 50, 80), (3, 65, 160), (2, 33, 7), (1, 1, 1)]
)
def test_cosine_affinity(make_qk, make_prior, device, dtype, bound, shape, weighted):
    q, k = make_qk(*shape, dtype=dtype)
    w = make_prior(shape[0]) if weighted else None
    out = cosine_affinity(q.to(device), k.to(device), w.to(device) if weighted else None)
    assert out.dtype == dtype
    assert relative_error(out, reference.cosine_affinity(q.double(), k.double(), w)) <= bound


def views(x):
    """The same values in memory of another order."""
    heads_last = x.transpose(-3, -2).contiguous().transpose(-3, -2)
    channels_strided = x.mT.contiguous().mT
    return {"heads last": heads_last, "channels strided": channels_strided}


@pytest.mark.parametrize("layout", ["heads last", "channels strided"])
@pytest.mark.parametrize("head_dim", [40, 24, 7])
def test_affinities_of_batches_and_views(make_qk, make_prior, device, layout, head_dim):
    q, k = make_qk(1, 2, 3, 35, head_dim, dtype=torch.float32)
    w = make_prior(1, 2, 3)
    q, k = (views(x.to(device))[layout] for x in (q, k))
    Q, K = q.double().cpu(), k.double().cpu()
    assert (
        relative_error(cosine_affinity(q, k), reference.cosine_affinity(Q, K))
        <= ERROR_BOUNDS[torch.float32]
    )
    on_device = w.to(device)
    assert (
        relative_error(cosine_affinity(q, k, on_device), reference.cosine_affinity(Q, K, w))
        <= ERROR_BOUNDS[torch.float32]
    )
    for weights in (w, None):
        expected = reference.local_affinity(Q, K, (5, 7), weights, 1, 0.5)
        given = None if weights is None else on_device
        out = local_affinity(q, k, (5, 7), given, 1, 0.5)
        assert out.shape == expected.shape
        assert relative_error(out, expected) <= ERROR_BOUNDS[torch.float32]


def test_addresses_that_are_not_aligned_get_the_narrow_variant(monkeypatch, dtype):
    monkeypatch.setattr(configs, "_forced", {})
    for first in (0, 1):
        q, k = (torch.zeros(2 * 64 * 40 + 1, dtype=dtype)[first:][: 2 * 64 * 40] for _ in range(2))
        q, k = q.view(2, 64, 40), k.view(2, 64, 40)
        with launch.recorded("sm_90") as started:
            local_affinity(q, k, (8, 8), None, 1, 1.0)
            head_entropy(q, k)
        for one in started:
            name = one.kernel.__name__.removesuffix("_kernel")
            options = configs.CANDIDATES[name]["16" if dtype.itemsize == 2 else "32"]
            # Few rows of a head, in smaller tiles.
            options = [c for c in options if name != "head_entropy" or c["BM"] <= 64]
            assert one.config == options[-1 if first else 0], name
            assert (one.arguments["UNIT"] == 1) == bool(first)


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("grid", [(1, 1), (1, 40), (40, 1), (7, 11), (3, 25)])
def test_local_affinity(make_qk, make_prior, device, dtype, grid, radius):
    q, k = make_qk(2, grid[0] * grid[1], 40, dtype=dtype)
    w = make_prior(2)
    out = local_affinity(q.to(device), k.to(device), grid, w.to(device), radius, 0.7)
    expected = reference.local_affinity(q.double(), k.double(), grid, w, radius, 0.7)
    assert out.dtype == torch.float32
    assert relative_error(out, expected) <= ERROR_BOUNDS[torch.float32]


def test_zero_vectors_are_like_nothing(make_qk, device):
    q, k = make_qk(2, 40, 16, dtype=torch.float32)
    q[:, 3], k[:, 5] = 0, 0
    A = cosine_affinity(q.to(device), k.to(device))
    assert (A[:, 3] == 0).all()
    assert (A[:, :, 5] == 0).all()
    local = local_affinity(q.to(device), k.to(device), (5, 8), None, 1, 1.0)
    assert torch.isfinite(local).all()
