"""The pure functions of examples/real, and its outlines: nothing is fetched."""

import json

import graphs
import masks
import pytest
import torch
from clicks import drawn_clicks, eroded
from coarse import CELLS, WRONG, coarse_prior, on_tokens
from masks import FOLDER, all_masks, check, rasterised, read, with_border
from photographs import half
from PIL import Image
from segmenters import calibration, distribution, walked
from tables import interval, markdown
from trials import bootstrap

import nerve_fast as nf
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


@pytest.fixture
def tokens(make_qk):
    q, k = make_qk(2, 30, 4, dtype=torch.float32)
    return graphs.Graph(q, k, (5, 6))


def seeded(places):
    seeds = torch.zeros(30, len(places))
    for label, tokens in enumerate(places):
        seeds[tokens, label] = 1 / len(tokens)
    return seeds


@pytest.mark.parametrize("calibrated", [True, False])
def test_scaling_seeds_changes_nothing(tokens, calibrated):
    config = nf.NerveConfig(temperature=0.2)
    seeds = seeded([[3], [7, 20, 21]])
    found = []
    for prior in (seeds, 5 * seeds):
        (one,) = walked(tokens, [prior], config, [4])[4]
        divisor = calibration(one, prior, config.alpha, 4) if calibrated else None
        found.append(distribution(one, tokens.grid, divisor))
    torch.testing.assert_close(*found)
    torch.testing.assert_close(found[0].sum(0), torch.ones(5, 6))


def test_calibration_weighs_things_of_any_size_alike():
    # Two things that hardly leak, of 4 and of 26 tokens, with a seed each.
    sizes = (4, 26)
    things = torch.repeat_interleave(torch.arange(2), torch.tensor(sizes))
    features = torch.nn.functional.one_hot(things, 2)[None].float()
    tokens = graphs.Graph(features, features, (1, 30))
    config = nf.NerveConfig(beta=1, temperature=0.4)
    seeds = seeded([[0], [10]])
    (one,) = walked(tokens, [seeds], config, [2])[2]
    own = torch.tensor([one[1, 0], one[11, 1]])
    assert own[0] > 3 * own[1]
    own = own / calibration(one, seeds, config.alpha, 2)
    torch.testing.assert_close(own, torch.ones(2))


def test_calibration_leaves_labels_alone_whose_walkers_do_not_come_back():
    seeds = seeded([[0], [5]])
    assert calibration(seeds, seeds, 0.9, 0).tolist() == [1, 1]
    assert calibration(seeds, seeds, 1.0, 0).tolist() == [1, 1]


def test_walks_share_their_priors_and_steps(tokens):
    config = nf.NerveConfig()
    one, two = seeded([[0], [9]]), seeded([[1], [2], [3]])
    found = walked(tokens, [one, two], config, [1, 3])
    assert [part.shape for part in found[1]] == [(30, 2), (30, 3)]
    alone = nf.random_walk(tokens.q, tokens.k, two, tokens.grid, config.replace(steps=3))
    torch.testing.assert_close(found[3][1], alone)


def test_a_token_that_nothing_reached_has_no_label():
    found = torch.tensor([[0.0, 0.0], [0.1, 0.3], [-0.2, 0.1]])
    shown = distribution(found, (1, 3))
    assert shown[:, 0].T.tolist() == [[0, 0], [0.25, 0.75], [0, 1]]


def test_cosines_of_colours_are_a_gaussian_kernel(generator):
    pixels = torch.randint(0, 256, (4, 6, 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    features = torch.nn.functional.normalize(graphs.colour_features(image, (4, 6))[0], dim=1)
    colours = pixels.flatten(0, 1).float()
    colours = (colours - colours.mean(0)) / (colours - colours.mean(0)).std()
    kernel = torch.exp(-torch.cdist(colours, colours).square() / 2)
    assert (features @ features.T - kernel).abs().mean() < 0.06


@pytest.mark.parametrize("cells", CELLS)
def test_coarse_prior_is_wrong_where_it_should_be(cells, generator):
    truth = torch.randint(0, 3, (cells, cells), generator=generator)
    truth = truth.repeat_interleave(5, 0).repeat_interleave(7, 1)
    prior = coarse_prior(truth, 3, cells, 0)
    assert torch.equal(prior.sum(0), torch.ones(cells, cells))
    wrong = prior.argmax(0) != truth[::5, ::7]
    assert wrong.sum() == round(WRONG * cells**2)
    # What it is on the tokens is still a distribution.
    on_grid = on_tokens(prior, (9, 13))
    torch.testing.assert_close(on_grid.sum(1), torch.ones(9 * 13))


def test_coarse_prior_is_equal_where_nothing_counts():
    truth = torch.full((16, 16), 255)
    truth[8:] = 1
    assert coarse_prior(truth, 2, 8, 0)[:, 0, 0].tolist() == [0.5, 0.5]


def test_bootstrap_is_around_the_mean_and_the_same_again():
    mean, low, high = bootstrap([0.2, 0.4, 0.9])
    assert mean == pytest.approx(0.5)
    assert low < mean < high
    assert bootstrap([0.2, 0.4, 0.9]) == (mean, low, high)
    assert bootstrap([0.3, 0.3]) == pytest.approx((0.3, 0.3, 0.3))
    assert interval([0.3, 0.3], signed=True) == "+30.0 (+30.0 to +30.0)"


def test_markdown_is_a_table():
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
