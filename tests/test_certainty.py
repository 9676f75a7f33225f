import re

import numpy as np
import pytest
import torch
from PIL import Image

import nerve_fast as nf
from nerve_fast.certainty import Certainty
from nerve_fast.tiny.scenes import generate

LABELS = ["grass", "water, sea", "ball"]


@pytest.fixture(scope="module")
def features(pipe):
    return pipe.encode(generate(960_000, (64, 96))[0])


@pytest.fixture(scope="module")
def plain(pipe, features):
    return pipe(features, LABELS)


def test_one_threshold_holds_for_all_labels(pipe, features, plain):
    best, index = plain.probabilities.max(0)
    threshold = best.median().item()
    expected = index.masked_fill(best < threshold, -1)
    out = pipe(features, LABELS, threshold=threshold)
    assert torch.equal(out.label_map, expected)
    assert 0.3 < (expected == -1).double().mean() < 0.7
    assert torch.equal(out.probabilities, plain.probabilities)
    instead = pipe(features, LABELS, threshold=threshold, background="sea").label_map
    assert torch.equal(instead, expected.masked_fill(expected == -1, 1))


def test_each_label_may_have_its_own(pipe, features, plain):
    """Named by a synonym; the likeliest label counts, and no other takes its place."""
    least = torch.tensor([0.0, 0.9, 0.6])
    best, index = plain.probabilities.max(0)
    expected = index.masked_fill(best < least[index], -1)
    out = pipe(features, LABELS, threshold={"Sea": 0.9, "ball": 0.6})
    assert torch.equal(out.label_map, expected)
    assert (expected == -1).any()


def test_the_png_and_the_legend_show_no_label(pipe, features, plain, tmp_path):
    threshold = plain.probabilities.amax(0).median().item()
    out = pipe(features, LABELS, threshold=threshold)
    out.save(tmp_path / "a.png")
    values = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(values == 255, (out.label_map == -1).numpy())
    white = np.asarray(out.overlay())[:64, :96][out.label_map.numpy() == -1]
    coloured = np.asarray(plain.overlay())[:64, :96][out.label_map.numpy() == -1]
    # Drawn under white: brighter than under any label's colour.
    assert white.mean() > coloured.mean()


def test_seeded_pixels_keep_their_labels_and_what_no_seed_reaches_is_under_it(pipe):
    image = generate(960_000, 64)[0]
    given = {"points": {"cup": [(3, 4)], "table": [(40, 50)]}, "threshold": 1.0}
    out = pipe(image, background="table", **given)
    assert out.label_map[4, 3] == 0
    assert (out.label_map == 1).sum() > 1000
    alone = pipe(image, points={"cup": [(3, 4)]}, config=nf.NerveConfig(steps=0), threshold=0.5)
    assert alone.label_map[4, 3] == 0
    assert (alone.label_map == -1).sum() > 1000


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"threshold": -0.1}, "threshold is -0.1; expected a number from 0 to 1"),
        ({"threshold": float("nan")}, "threshold is nan; expected a number from 0 to 1"),
        ({"threshold": {"ball": 1.5}}, "threshold is 1.5 for 'ball'; expected a number"),
        ({"threshold": {"moon": 0.5}}, "threshold names 'moon', which is none of the labels:"),
        ({"threshold": {}}, "threshold names no label"),
        ({"threshold": 0.3, "background": "moon"}, "background is 'moon', which is none of the"),
        ({"background": "ball"}, "there is none; set threshold too"),
        ({"threshold": "0.3"}, "threshold is '0.3'; expected a number"),
        ({"threshold": {"ball": True}}, "expected a number from 0 to 1"),
        ({"threshold": {3: 0.1}}, "threshold has the key 3; expected a label"),
        ({"threshold": 0.1, "background": 3}, "background is 3; expected a label"),
    ],
)
def test_wrong_values_are_refused(pipe, features, given, said):
    with pytest.raises((nf.InputError, TypeError), match=re.escape(said)) as refused:
        pipe(features, LABELS, **given)
    assert "\n" not in str(refused.value)


def test_a_label_of_another_images_seeds_may_be_named(pipe):
    image = generate(960_000, 64)[0]
    points = [{name: [(3, 4)], "rest": [(50, 50)]} for name in ("cup", "table")]
    both = pipe([image, image], points=points, threshold={"table": 1.0})
    assert [one.labels for one in both] == [("cup", "rest"), ("table", "rest")]
    assert (both[0].label_map != -1).all()
    assert (both[1].label_map == -1).any()
    with pytest.raises(nf.InputError, match="background is 'table', which is none of the labels"):
        pipe([image, image], points=points, threshold=0.5, background="table")


def test_thresholds_are_plain_numbers():
    made = Certainty({"a": np.float32(0.5), "b": 1})
    assert made.threshold == {"a": 0.5, "b": 1.0}
    assert all(type(value) is float for value in made.threshold.values())
    assert Certainty(0).threshold == 0.0
    assert Certainty().least(["a"]) is None
