import pytest
import torch

from nerve_fast.imaging import densecrf as module
from nerve_fast.imaging.densecrf import densecrf

SIZE = (13, 17)


@pytest.fixture
def image(generator):
    """``(3, 13, 17)``, 0 to 255: two colours with noise, so that pairs are near and far."""
    levels = torch.where(torch.arange(SIZE[1]) < 8, 60, 190).expand(3, *SIZE)
    return (levels + torch.randint(-9, 10, (3, *SIZE), generator=generator)).double()


@pytest.fixture
def maps(make_prior):
    return make_prior(*SIZE, 4).permute(2, 0, 1).contiguous()


def directly(image, p, iterations, weight, spread, bilateral_weight, place_spread, colour_spread):
    """The definition, with the kernels of all pairs."""
    height, width = image.shape[1:]
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    places = places.flatten(1).T.double()
    colours = image.flatten(1).T

    def squared(points):
        return (points[:, None] - points).square().sum(-1)

    kernels = [
        (weight, torch.exp(-squared(places) / (2 * spread**2))),
        (
            bilateral_weight,
            torch.exp(
                -squared(places) / (2 * place_spread**2) - squared(colours) / (2 * colour_spread**2)
            ),
        ),
    ]
    unary = p.flatten(1).log()
    Q = p.flatten(1)
    for _ in range(iterations):
        logits = unary.clone()
        for w, kernel in kernels:
            z = kernel.sum(0)
            logits += w * Q @ (kernel / (z[:, None] * z).sqrt())
        Q = logits.softmax(0)
    return Q.unflatten(1, (height, width))


@pytest.mark.parametrize(
    "settings",
    [(10, 3, 1, 4, 67, 3), (3, 0.5, 2.5, 10, 5, 13), (1, 0, 1, 1, 2, 80), (2, 1, 1, 0, 5, 5)],
    ids=["default", "other", "pairs-only", "places-only"],
)
def test_it_is_the_direct_sum_over_all_pairs(image, maps, settings, monkeypatch):
    monkeypatch.setattr(module, "TILE", 8)
    names = ("weight", "spread", "bilateral_weight", "bilateral_spread", "colour_spread")
    iterations, *values = settings
    options = dict(zip(names, values, strict=True))
    expected = directly(image, maps, iterations, *values)
    for dtype in (torch.float64, torch.float32):
        found = densecrf(image.to(dtype), maps.to(dtype), iterations=iterations, **options)
        assert found.dtype == dtype
        assert (found - expected).abs().max() < 1e-4
    assert (expected - maps).abs().max() > 0.01


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_it_is_exact_where_colours_are_strewn_and_whatever_precision_is_allowed(
    maps, generator, monkeypatch, precision
):
    monkeypatch.setattr(module, "TILE", 8)
    image = torch.randint(0, 256, (3, *SIZE), generator=generator).double()
    image[:, :, 5:] = image[:, :, 5:].clamp(max=40)
    expected = directly(image, maps, 10, 3, 1, 4, 67, 3)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = densecrf(image, maps)
    finally:
        torch.set_float32_matmul_precision(before)
    assert (found - expected).abs().max() < 1e-5


def test_pairs_that_are_far_apart_are_left_out_and_matter_little(image, maps, monkeypatch):
    monkeypatch.setattr(module, "TILE", 8)
    pairs = module._Pairs(image, 67.0, 3.0)
    tiles = len(pairs.order)
    taken = 0
    for first in range(0, tiles, module.BLOCK):
        own = slice(first, first + module.BLOCK)
        taken += module.BLOCK * sum(len(some) for some in pairs._near(own))
    assert 0 < taken < tiles * (tiles - module.BLOCK) / 2 * 0.8
    whole = torch.exp(-torch.cdist(*[features_of(image)] * 2).square() / 2)
    scale = whole.sum(1).rsqrt()
    expected = (scale * whole * scale[:, None]) @ maps.flatten(1).T.double()
    torch.testing.assert_close(pairs(maps).flatten(1).T, expected, rtol=0, atol=1e-5)


def features_of(image):
    """``(N, 5)`` with the default standard deviations."""
    places = torch.meshgrid(*(torch.arange(side) / 67.0 for side in SIZE), indexing="ij")
    return torch.cat([image / 3, torch.stack(places)]).flatten(1).T.double()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 257, 1000])
def test_tiles_are_of_one_size_and_hold_each_point_once(count, generator):
    order = module._balanced(torch.rand(count, 5, generator=generator))
    assert order.shape[1] <= module.TILE
    assert order.numel() <= count + len(order)
    points = order[order < count]
    assert torch.equal(points.sort().values, torch.arange(count))


def test_labels_snap_to_the_edge_of_a_colour():
    image = torch.zeros(3, 20, 20)
    image[:, :, 10:] = 200
    p = torch.full((2, 20, 20), 0.4)
    p[0, :, :13], p[1, :, 13:] = 0.6, 0.6
    assert torch.equal(densecrf(image, p).argmax(0), (torch.arange(20) >= 10).long().expand(20, 20))
