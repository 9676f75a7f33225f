import pytest
import torch
from torch.nn.functional import interpolate

from nerve_fast.evaluation.rules import cliper, thresholded
from nerve_fast.imaging import resampling
from nerve_fast.imaging.resampling import stripes
from nerve_fast.priors import best_words

CLASSES = [["sky", "wall"], ["cat"], ["dog", "puppy", "hound"]]


@pytest.fixture(autouse=True)
def thin_stripes(monkeypatch):
    """Several stripes for the smallest of images."""
    monkeypatch.setattr(resampling, "STRIPE_BYTES", 2000)


@pytest.mark.parametrize("size", [(37, 50), (5, 4), (9, 11)])
def test_stripes_are_interpolate(generator, size):
    maps = torch.rand(6, 9, 11, generator=generator)
    found = torch.cat([stripe for _, stripe in stripes(maps, size, antialias=False)], dim=1)
    expected = interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, expected)


def published(similarity, size, scale, threshold, area_threshold=None):
    """The SCLIP line's order, on whole arrays, a word at a time."""
    logits = scale * interpolate(similarity[None], size, mode="bilinear")[0].double()
    words = logits.softmax(0)
    probabilities = torch.stack([words[:2].amax(0), words[2], words[3:].amax(0)])
    label_map = probabilities.argmax(0)
    if area_threshold:
        thing = (label_map > 0).sum()
        for label in (1, 2):
            if (label_map == label).sum() <= area_threshold * thing:
                probabilities[label] = 0
        label_map = probabilities.argmax(0)
    label_map[probabilities.amax(0) < threshold] = 0
    return label_map


@pytest.mark.parametrize("area_threshold", [0, 0.3, 0.6])
def test_thresholded_is_the_order_of_public_code(generator, area_threshold):
    similarity = torch.rand(6, 5, 7, generator=generator)
    similarity[2] += 0.2
    size, scale, threshold = (33, 47), 5, 0.3
    found = thresholded(
        similarity,
        size,
        lambda stripe: best_words((scale * stripe).softmax(0), CLASSES),
        least=threshold,
        area_threshold=area_threshold,
    )
    expected = published(similarity, size, scale, threshold, area_threshold)
    assert (found == expected).double().mean() > 0.999
    plain = published(similarity, size, scale, 0)
    assert not torch.equal(expected, plain)


def test_small_areas_are_left_out_and_the_next_best_takes_their_place():
    maps = torch.zeros(4, 10, 10)
    maps[1] = 0.5
    maps[3, 0, 0] = 0.9
    maps[2, 0, 0] = 0.6

    def labels(area_threshold):
        return thresholded(maps, (10, 10), lambda x: x, least=0.2, area_threshold=area_threshold)

    assert labels(0.0)[0, 0] == 3
    assert labels(0.05)[0, 0] == 1
    # A class of all there is stays; none is above the whole.
    assert labels(0.05)[5, 5] == 1
    assert (labels(1.0) == 0).all()


def test_areas_are_shares_of_all_that_is_not_background():
    maps = torch.zeros(3, 1, 20)
    maps[0, :, :10] = 0.4
    maps[1, :, 10:16] = 0.9
    maps[2, :, 16:] = 0.9

    def count(area_threshold):
        rule = {"least": 0.0, "area_threshold": area_threshold}
        return thresholded(maps, (1, 20), lambda x: x, **rule).flatten().bincount(minlength=3)

    # 6 and 4 of 10 pixels.
    assert count(0.39).tolist() == [10, 6, 4]
    assert count(0.41).tolist() == [14, 6, 0]


def test_clipers_rule():
    """Scores choose the classes of the image, the background threshold its pixels."""
    maps = torch.zeros(4, 1, 4)
    maps[0] = 0.9
    maps[1] = torch.tensor([[0.4, 0.3, 0.05, 0.0]])
    maps[2] = torch.tensor([[0.1, 0.1, 0.1, 0.1]])
    maps[3] = torch.tensor([[0.0, 0.35, 0.0, 0.0]])

    def labels(given=None, **changes):
        maps_ = maps if given is None else given
        rule = {"has_background": True, "score": 0.5, "background": 0.4, "stretched": False}
        return cliper(maps_, maps_, (1, 4), **{**rule, **changes})[0].tolist()

    # Class 1 is 0.8, 0.6, 0.1, 0 and class 3 0.7 at the second pixel.
    maps = 2 * maps
    assert labels() == [1, 3, 0, 0]
    assert labels(score=0.75) == [1, 1, 0, 0]
    assert labels(score=0.1, background=0.05) == [1, 3, 2, 2]
    assert labels(background=0.75) == [1, 0, 0, 0]
    # Without a background class 0 takes part, and nothing is no label.
    assert labels(has_background=False) == [0, 0, 0, 0]
    assert labels(maps[1:], has_background=False) == [0, 2, 3, 3]
    # Stretched, the weaker of two reaches the stronger at its best place.
    flat = torch.stack([torch.zeros(1, 4), maps[1] + 1, 0.7 * maps[1].flip(1)])
    assert labels(flat, score=0, background=0.3) == [1, 1, 1, 1]
    assert labels(flat, score=0, background=0.3, stretched=True) == [1, 1, 2, 2]


def test_clipers_scores_are_means_of_before_and_after():
    prior, refined = torch.zeros(2, 1, 1), torch.zeros(2, 2, 2)
    prior[1] = 1.8
    refined[1] = 0.4
    rule = {"has_background": True, "background": 0.0001, "stretched": False}
    assert (cliper(prior, refined, (3, 3), score=1.0, **rule) == 1).all()
    assert (cliper(prior, refined, (3, 3), score=1.2, **rule) == 0).all()
