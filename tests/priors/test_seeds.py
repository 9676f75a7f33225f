import numpy as np
import pytest
import torch
from PIL import Image

from nerve_fast import InputError
from nerve_fast.priors.seeds import Seeds, read_scribbles

SIZE = (40, 24)


def test_pixels_of_points_boxes_and_scribbles():
    mask = np.zeros((24, 40), bool)
    mask[20, 30:35] = True
    seeds = Seeds.of(
        SIZE,
        points={"cup": [(3.7, 2.2), (0, 0)]},
        boxes={"table": [(10, 10, 12, 13)]},
        scribbles={"cup": mask},
    )
    assert seeds.labels == ("cup", "table")
    assert seeds.pixels.shape == (24, 40)
    assert (seeds.pixels >= 0).sum() == 2 + 2 * 3 + 5
    assert seeds.pixels[2, 3] == seeds.pixels[0, 0] == seeds.pixels[20, 34] == 0
    assert (seeds.pixels[10:13, 10:12] == 1).all()
    assert Seeds.of(SIZE) is None


def test_rows_are_one_hot_over_the_number_of_seeds():
    seeds = Seeds.of(SIZE, points={"a": [(1, 1), (2, 1), (39, 23)], "b": [(20, 12)]})
    G = seeds.prior((6, 10), ("a", "b"))
    assert G.shape == (60, 2)
    # The first two points lie in one token.
    assert G[0].tolist() == [0.5, 0]
    assert G[59].tolist() == [0.5, 0]
    assert G[3 * 10 + 5].tolist() == [0, 1]
    assert (G.sum(1) > 0).sum() == 3
    torch.testing.assert_close(G.sum(0), torch.ones(2))


def test_words_stay_where_nothing_is_said(make_prior):
    words = make_prior(60, 3, dtype=torch.float32)
    seeds = Seeds.of(SIZE, points={"new": [(20, 12)], "old": [(1, 1)]})
    labels = ("old", "other", "new")
    G = seeds.prior((6, 10), labels, words)
    assert G[35].tolist() == [0, 0, 1]
    assert G[0].tolist() == [1, 0, 0]
    rest = torch.ones(60, dtype=torch.bool)
    rest[[0, 35]] = False
    assert torch.equal(G[rest], words[rest])


def test_a_seeded_pixel_keeps_its_label():
    seeds = Seeds.of(SIZE, points={"b": [(5, 7)]})
    found = seeds.overrule(torch.zeros(24, 40, dtype=torch.int64), ("a", "b"))
    assert found[7, 5] == 1
    assert found.sum() == 1


@pytest.mark.parametrize(
    ("seeds", "error", "message"),
    [
        ({"points": {"a": [(40, 3)]}}, InputError, r"point 40,3 of 'a' lies outside .* 40 × 24"),
        ({"points": {"a": [(-1, 3)]}}, InputError, "point -1,3 of 'a' lies outside"),
        ({"points": {"a": []}}, InputError, "label 'a' has no point"),
        ({"points": {"a": [(1, 2, 3)]}}, InputError, r"points of 'a' are not a list of \(x, y\)"),
        ({"points": {"a": [(1, float("nan"))]}}, InputError, "points of 'a' are not a list"),
        ({"points": {"a": 3}}, InputError, "points of 'a' are not a list"),
        ({"points": [(1, 2)]}, TypeError, "points is a list; expected a dictionary from labels"),
        (
            {"points": {"a": [(1, 2)], "b": [(1.5, 2.9)]}},
            InputError,
            "seeds of 'a' and 'b' overlap in 1 pixels",
        ),
        ({"boxes": {"a": [(5, 5, 5, 9)]}}, InputError, "box 5,5,5,9 of 'a' is empty or reaches"),
        ({"boxes": {"a": [(5, 5, 41, 9)]}}, InputError, "box 5,5,41,9 of 'a' is empty or reaches"),
        (
            {"boxes": {"a": [(0, 0, 9, 9)], "b": [(8, 8, 12, 12)]}},
            InputError,
            "seeds of 'a' and 'b' overlap in 1 pixels",
        ),
        (
            {"scribbles": {"a": np.ones((24, 41))}},
            InputError,
            r"scribbles of 'a' have shape \(24, 41\); expected \(24, 40\)",
        ),
        ({"scribbles": {"a": np.zeros((24, 40))}}, InputError, "label 'a' has no scribble"),
        (
            {"points": {"a\nb": [(1, 1)]}},
            InputError,
            "a label of the points is 'a\\\\nb'; it holds",
        ),
    ],
)
def test_bad_seeds_are_refused(seeds, error, message):
    with pytest.raises(error, match=message):
        Seeds.of(SIZE, **seeds)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_scribbles_are_read_from_a_mask_image(tmp_path, mode):
    values = np.zeros((24, 40), np.uint8)
    values[3, 4:9], values[20, 5] = 1, 3
    image = Image.fromarray(values)
    if mode == "P":
        image = image.convert("P")
        image.putdata(values.ravel().tolist())
    image.save(tmp_path / "mask.png")
    found = read_scribbles(tmp_path / "mask.png", ("a", "b", "c"))
    assert list(found) == ["a", "c"]
    assert found["a"].sum() == 5
    assert found["c"].sum() == 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((4, 4), 9), "the scribbles hold 9; expected values from 1 to 2"),
        (np.zeros((4, 4), int), "the scribbles hold nothing but 0"),
        (np.full((4, 4), -1), "the scribbles hold -1"),
        (np.zeros((4, 4)), "dtype float64; expected"),
        (Image.new("RGB", (4, 4)), "an image of mode RGB; expected a greyscale or palette"),
    ],
)
def test_bad_masks_are_refused(mask, message):
    with pytest.raises(InputError, match=message):
        read_scribbles(mask, ("a", "b"))
