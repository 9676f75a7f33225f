import math

import pytest
import torch
from torch.nn.functional import interpolate

from nerve_fast.backbones.positions import resampled_positions


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_on_their_own_grid_positions_stay(generator, offset):
    positions = torch.randn(26, 3, generator=generator)
    assert resampled_positions(positions, (5, 5), offset) is positions


@pytest.mark.parametrize("grid", [(7, 4), (3, 9), (5, 6), (1, 1)])
def test_without_an_offset_they_are_those_of_transformers(generator, grid):
    positions = torch.randn(26, 3, generator=generator)
    resampled = resampled_positions(positions, grid)
    maps = positions[1:].T.reshape(1, 3, 5, 5)
    expected = interpolate(maps, grid, mode="bicubic", align_corners=False)[0]
    assert torch.equal(resampled[0], positions[0])
    torch.testing.assert_close(resampled[1:].T.unflatten(1, grid), expected)


@pytest.mark.parametrize("grid", [(7, 4), (3, 9)])
def test_other_filters_are_those_of_interpolate(generator, grid):
    positions = torch.randn(26, 3, generator=generator)
    maps = positions[1:].T.reshape(1, 3, 5, 5)
    for name, options in {
        "bilinear": {"mode": "bilinear"},
        "antialiased": {"mode": "bicubic", "antialias": True},
    }.items():
        resampled = resampled_positions(positions, grid, filter=name)
        expected = interpolate(maps, grid, **options)[0]
        torch.testing.assert_close(resampled[1:].T.unflatten(1, grid), expected)


def bicubic(values, place):
    """By hand: cubic convolution, with torch's coefficient of -0.75, at a place of a line."""
    total = 0.0
    for k in range(math.floor(place) - 1, math.floor(place) + 3):
        d, a = abs(place - k), -0.75
        if d <= 1:
            weight = (a + 2) * d**3 - (a + 3) * d**2 + 1
        else:
            weight = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        total += weight * values[min(max(k, 0), len(values) - 1)]
    return total


@pytest.mark.parametrize("grid", [(7, 4), (3, 9), (28, 42)])
def test_with_an_offset_places_are_read_as_on_a_grid_that_much_larger(generator, grid):
    side, offset = 14, 0.1
    lines = torch.randn(2, side, generator=generator, dtype=torch.float64)
    maps = torch.stack([lines[0][:, None].expand(side, side), lines[1].expand(side, side)], dim=-1)
    positions = torch.cat([torch.zeros(1, 2).double(), maps.flatten(0, 1)])
    resampled = resampled_positions(positions, grid, offset)[1:].unflatten(0, grid)
    for axis, length in enumerate(grid):
        places = [(i + 0.5) * side / (length + offset) - 0.5 for i in range(length)]
        expected = torch.stack([bicubic(lines[axis], place) for place in places])
        torch.testing.assert_close(resampled[..., axis].select(1 - axis, 0), expected)
