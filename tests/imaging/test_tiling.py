import itertools

import pytest
import torch

from nerve_fast import InputError
from nerve_fast.imaging.tiling import Tiling


@pytest.mark.parametrize("size", [(8, 8), (96, 4096), (1024, 1032), (3000, 5000), (768, 776)])
@pytest.mark.parametrize(("tile", "overlap"), [(768, 128), (256, 0), (96, 48)])
def test_tiles_cover_everything_and_their_weights_sum_to_one(size, tile, overlap):
    tiling = Tiling.of(size, tile, overlap, 8)
    whole = torch.zeros(size)
    rows, columns = tiling.weights()
    height, width = tiling.tile
    for i, top in enumerate(tiling.tops):
        for j, left in enumerate(tiling.lefts):
            whole[top : top + height, left : left + width] += rows[i][:, None] * columns[j]
    torch.testing.assert_close(whole, torch.ones(size))
    assert max(tiling.tile) <= tile
    assert len(list(tiling)) == len(tiling)
    for starts, length, side in zip((tiling.tops, tiling.lefts), tiling.tile, size, strict=True):
        assert starts[0] == 0
        assert starts[-1] + length == side
        assert all(start % 8 == 0 for start in starts)
        covered = [one + length - other for one, other in itertools.pairwise(starts)]
        assert all(overlap - 8 <= shared for shared in covered)


def test_no_more_tiles_than_needed():
    assert len(Tiling.of((768, 768), 768, 128, 8)) == 1
    assert Tiling.of((768, 776), 768, 128, 8).lefts == (0, 320)
    assert len(Tiling.of((4096, 4096), 768, 128, 8)) == 49


def test_a_grid_has_the_same_tiles():
    tiling = Tiling.of((200, 400), 160, 32, 8)
    coarse = tiling.in_units(8)
    assert coarse.size == (25, 50)
    assert list(coarse) == [(top // 8, left // 8) for top, left in tiling]


@pytest.mark.parametrize(
    ("tile", "overlap", "said"),
    [
        (4, 0, "tile is 4; expected 8 pixels or more"),
        ("big", 0, "tile is 'big'"),
        (96, -1, "overlap is -1; expected 0 pixels or more"),
        (96, 49, "overlap is 49 and tile 96; expected an overlap of at most half a tile"),
    ],
)
def test_tiles_that_make_no_sense_are_refused(tile, overlap, said):
    with pytest.raises(InputError, match=said):
        Tiling.of((512, 512), tile, overlap, 8)


def test_runs_of_tiles_are_those_of_the_whole():
    whole = Tiling.of((96, 160), 64, 16, 8)
    for parts in (1, 2, 3, 20):
        runs = [whole.part(index, parts) for index in range(parts)]
        assert [corner for run in runs for corner in run] == list(whole)
        assert sum(map(len, runs)) == len(whole)
        for run in runs:
            top, bottom = run.rows
            assert all(top <= y and y + run.tile[0] <= bottom for y, _ in run)
            assert run.in_units(8).rows == (top // 8, bottom // 8)
            assert torch.equal(run.weights()[0], whole.weights()[0])
