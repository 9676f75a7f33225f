"""The pure functions of examples/real, and its outlines: nothing is fetched."""

import json

import masks
import pytest
import torch
from clicks import drawn_clicks, eroded
from masks import FOLDER, all_masks, check, rasterised, read, with_border
from photographs import half

from nerve_fast.errors import InputError

NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def test_there_are_ten_photographs_and_more():
    assert len(NAMES) >= 10


@pytest.mark.parametrize("name", NAMES)
def test_outlines_are_valid(name):
    mask = read(FOLDER / f"{name}.json")
    truth = mask.label_map()
    assert truth.shape == mask.size[::-1]
    assert set(truth.unique().tolist()) - {255} == set(range(len(mask.labels)))
    for label, clicks in enumerate(mask.clicks):
        assert [truth[y, x].item() for x, y in clicks] == [label] * len(clicks), mask.labels[label]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["cup", "cup"]}, "labels must differ"),
        ({"border": "3"}, "border must be of the type int"),
        ({"shapes": [{"label": "cup", "polygon": [[0, 0], [1, 0], [0, 1]]}]}, "cover everything"),
        ({"clicks": {}}, "clicks must have the labels"),
    ],
)
def test_check_says_what_is_wrong(change, message):
    found = json.loads((FOLDER / f"{NAMES[0]}.json").read_text())
    with pytest.raises(InputError, match=message):
        check({**found, **change}, "a file")


def test_check_finds_a_click_outside_and_a_label_without_a_shape():
    found = json.loads((FOLDER / f"{NAMES[0]}.json").read_text())
    first = found["labels"][0]
    clicks = {**found["clicks"], first: [[found["size"][0], 0]]}
    with pytest.raises(InputError, match="is outside"):
        check({**found, "clicks": clicks}, "a file")
    last = found["labels"][-1]
    shapes = [shape for shape in found["shapes"] if shape["label"] != last]
    with pytest.raises(InputError, match="every label must have a shape"):
        check({**found, "shapes": shapes}, "a file")


def test_rasterised_paints_later_shapes_over_earlier_ones():
    square = ((2, 1), (5, 1), (5, 3), (2, 3))
    shapes = (("a", None), ("b", square), ("ignore", ((5, 3), (5, 3), (5, 3))))
    found = rasterised((8, 6), ("a", "b"), shapes)
    expected = torch.zeros(6, 8, dtype=torch.int64)
    expected[1:4, 2:6] = 1
    expected[3, 5] = 255
    assert torch.equal(found, expected)


def test_with_border_ignores_both_sides_of_an_outline():
    labels = torch.zeros(5, 10, dtype=torch.int64)
    labels[:, 6:] = 1
    found = with_border(labels, 2)
    assert found[2].tolist() == [0] * 4 + [255] * 4 + [1] * 2
    assert with_border(labels, 0) is labels


def test_eroded_keeps_its_distance_but_not_from_the_image_border():
    inside = torch.ones(6, 9, dtype=torch.bool)
    inside[:, 5] = False
    expected = torch.zeros(6, 9, dtype=torch.bool)
    expected[:, :3] = True
    expected[:, 8:] = True
    assert torch.equal(eroded(inside, 2), expected)
    assert torch.equal(eroded(inside, 0), inside)


def test_drawn_clicks_lie_inside_and_fewer_are_the_first_of_more(generator):
    truth = torch.randint(0, 3, (5, 7), generator=generator)
    truth = truth.repeat_interleave(20, 0).repeat_interleave(20, 1)
    truth[:10] = 255
    seed = int(torch.randint(1000, (), generator=generator))
    ten = drawn_clicks(truth, 3, 10, seed)
    for label, clicks in enumerate(ten):
        assert len(set(clicks)) == 10
        assert all(truth[y, x] == label for x, y in clicks)
    assert drawn_clicks(truth, 3, 3, seed) == tuple(clicks[:3] for clicks in ten)
    assert drawn_clicks(truth, 3, 10, seed + 1) != ten


def test_drawn_clicks_of_a_label_without_pixels_are_none():
    truth = torch.zeros(30, 30, dtype=torch.int64)
    truth[4, 7] = 2
    clicks = drawn_clicks(truth, 3, 5, 0)
    assert [len(one) for one in clicks] == [5, 0, 1]
    assert clicks[2] == ((7, 4),)


def test_half_alternates_by_name():
    names = ["d", "a", "c", "b"]
    assert [half(name, names) for name in sorted(names)] == ["tune", "report", "tune", "report"]
    reporting = [name for name in NAMES if half(name, NAMES) == "report"]
    assert len(reporting) == len(NAMES) // 2


def test_all_masks_are_by_name():
    assert [mask.name for mask in all_masks()] == NAMES
    assert masks.IGNORE not in NAMES
