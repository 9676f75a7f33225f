import torch

from nerve_fast.imaging.mosaic import Mosaic
from nerve_fast.imaging.resampling import likeliest
from nerve_fast.imaging.tiling import Tiling


def filled(labels, tiling, generator):
    """Windows' maps, and their weighted mean over the plane."""
    down, across = tiling.weights()
    whole = torch.zeros(labels, *tiling.size)
    windows = []
    for i, top in enumerate(tiling.tops):
        for j, left in enumerate(tiling.lefts):
            maps = torch.rand(labels, *tiling.tile, generator=generator)
            weights = down[i][:, None] * across[j]
            windows.append(((top, left), maps, weights))
            whole[:, top : top + tiling.tile[0], left : left + tiling.tile[1]] += maps * weights
    return windows, whole


def test_blocks_are_those_of_the_blended_plane(generator):
    tiling = Tiling.of((23, 17), 9, 3, 1)
    windows, whole = filled(4, tiling, generator)
    pixels, least = 5, torch.full((4,), 0.6)
    expected = likeliest(whole, (23 * pixels, 17 * pixels), least)
    assert (expected == -1).any()
    assert (expected >= 0).any()
    mosaic = Mosaic(4, tiling.size)
    found = torch.full_like(expected, -2)
    # Blocks that are no whole tokens, written as soon as their tokens are there.
    row, height = 0, 23 * pixels - 2
    for number, (corner, maps, weights) in enumerate(windows, start=1):
        mosaic.add(corner, maps, weights)
        if number % len(tiling.lefts):
            continue
        done = number == len(windows)
        there = 23 if done else tiling.tops[number // len(tiling.lefts)]
        while row < height:
            end = min(row + 12, height)
            if mosaic.needed(end, pixels) > there:
                break
            for left in range(0, 17 * pixels, 31):
                size = (end - row, min(31, 17 * pixels - left))
                block = mosaic.labels((row, left), size, pixels, least)
                found[row:end, left : left + size[1]] = block
            row = end
            mosaic.drop(row, pixels)
    assert row == height
    assert (found[:height] == expected[:height]).double().mean() > 0.999


def test_rows_that_are_done_are_forgotten():
    mosaic = Mosaic(3, (100, 10))
    for top in range(0, 100, 10):
        mosaic.add((top, 0), torch.rand(3, 10, 10), torch.ones(10, 10))
        mosaic.drop(10 * top, 10)
        assert mosaic._sums.shape[1] <= 11


def test_what_no_window_has_seen_has_no_label():
    mosaic = Mosaic(2, (4, 8))
    mosaic.add((0, 0), torch.rand(2, 4, 4) + 0.1, torch.ones(4, 4))
    found = mosaic.labels((0, 0), (8, 16), 2)
    assert (found[:, :7] >= 0).all()
    assert (found[:, 9:] == -1).all()
    assert (mosaic.labels((0, 0), (8, 16), 2, instead=1)[:, 9:] == 1).all()
