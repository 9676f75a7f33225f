import pytest
import torch
from torch.nn.functional import interpolate

from nerve_fast.imaging import resampling
from nerve_fast.imaging.resampling import likeliest, to_pixels

SIZES = [((8, 12), (64, 96)), ((7, 5), (23, 40)), ((40, 30), (9, 11)), ((1, 1), (5, 3))]


@pytest.mark.parametrize(("old", "new"), [*SIZES, ((16, 16), (16, 16)), ((33, 4), (1, 1))])
@pytest.mark.parametrize("stripe", [1, 1000, 1 << 24])
def test_stripes_are_the_whole_that_torch_makes(generator, monkeypatch, old, new, stripe):
    monkeypatch.setattr(resampling, "STRIPE_BYTES", stripe)
    maps = torch.randn(3, *old, generator=generator)
    expected = interpolate(maps[None], new, mode="bilinear", align_corners=False, antialias=True)[0]
    torch.testing.assert_close(to_pixels(maps, new), expected)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_the_likeliest_is_that_of_the_pixels(generator, old, new):
    maps = torch.rand(4, *old, generator=generator)
    assert torch.equal(likeliest(maps, new), to_pixels(maps, new).argmax(0))


def test_nothing_above_zero_is_no_label():
    maps = torch.zeros(3, 2, 2)
    maps[2, 0, 0] = 1e-30
    assert likeliest(maps, (2, 2)).tolist() == [[2, -1], [-1, -1]]


def test_a_small_map_averages_what_a_pixel_covers():
    fine = torch.zeros(1, 8, 8)
    fine[0, :, ::4] = 1
    torch.testing.assert_close(
        to_pixels(fine, (2, 2)), torch.full((1, 2, 2), 0.25), atol=0.1, rtol=0
    )
