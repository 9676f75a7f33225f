"""The laws of seeds (design §1), on the tiny diffusion model."""

import pytest
import torch

import nerve_fast as nf
from nerve_fast.config import SEED_CONFIG
from nerve_fast.tiny.scenes import generate

POINTS = {"a": [(10, 12), (40, 90)], "b": [(100, 30)], "c": [(70, 110)]}
NORMALIZATIONS = ("softmax", "relu", "l1", "shift")


@pytest.fixture(scope="module")
def features(pipe):
    return pipe.encode(generate(960_004, (128, 128))[0])


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_seeded_pixels_keep_their_labels(pipe, features, normalization):
    out = pipe(features, points=POINTS, config=nf.NerveConfig(normalization=normalization))
    for number, places in enumerate(POINTS.values()):
        for x, y in places:
            assert out.label_map[y, x] == number
    assert out.labels == tuple(POINTS)


def test_a_label_with_many_seeds_is_not_favoured(pipe, features):
    once = pipe(features, points={"a": [(10, 12)], "b": [(100, 30)]})
    # Each label's seeds, all of them, twice: in one token, so that nothing else changes.
    twice = pipe(features, points={"a": [(10, 12), (11, 13)], "b": [(100, 30)]})
    assert torch.equal(once.walked, twice.walked)


def test_a_label_without_reach_has_no_pixels_but_its_own(pipe, features):
    # Affinities below 0 alone lead nowhere: with relu and no local part walkers stay.
    config = nf.NerveConfig(normalization="relu", beta=0.0, steps=1, self_affinity=1.0)
    out = pipe(features, points=POINTS, config=config)
    assert (out.label_map == -1).float().mean() > 0.9
    reached = out.walked.sum(0) > 0
    assert reached.sum() <= 4 * 9
    assert torch.isin(out.label_map.unique(), torch.tensor([-1, 0, 1, 2])).all()


def test_seeds_overrule_words(pipe, features):
    words = ["grass", "water"]
    out = pipe(features, words, points={"water": [(10, 12)], "thing": [(100, 100)]})
    assert out.labels == ("grass", "water", "thing")
    assert out.label_map[12, 10] == 1
    assert out.label_map[100, 100] == 2
    torch.testing.assert_close(out.prior.sum(0), torch.ones(32, 32))
    # Where nothing is said it is the words' prior.
    alone = pipe(features, words)
    differ = (out.prior[:2] != alone.prior).any(0)
    assert differ.sum() == 2


def test_seeds_of_each_image_of_a_list(pipe):
    images = [generate(960_004 + i, (128, 128))[0] for i in range(2)]
    points = [{"a": [(5, 5)], "b": [(60, 60)]}, {"c": [(9, 9)], "d": [(90, 90)]}]
    together = pipe(images, points=points, batch_size=2)
    assert [out.labels for out in together] == [("a", "b"), ("c", "d")]
    for image, one, out in zip(images, points, together, strict=True):
        assert torch.equal(pipe(image, points=one).label_map, out.label_map)
    with pytest.raises(nf.InputError, match="points is not a list of 2; expected one entry"):
        pipe(images, points=points[0])


def test_nothing_said_is_refused(pipe, features):
    with pytest.raises(nf.InputError, match="neither labels nor seeds are given"):
        pipe(features)
    with pytest.raises(nf.InputError, match="neither labels nor seeds are given"):
        pipe(features, points={})


def test_seeds_alone_have_settings_of_their_own(pipe, features):
    """Unless a call or the pipeline brings others; words with seeds have those of words."""
    usual, words = nf.NerveConfig(), ["grass", "ball"]
    assert pipe(features, points=POINTS).plan.config == SEED_CONFIG != usual
    assert pipe(features, points=POINTS, config=usual).plan.config == usual
    assert pipe(features, words, points=POINTS).plan.config == usual
    own = nf.NervePipeline(pipe.prior, pipe.graph, config=usual)
    assert own(features, points=POINTS).plan.config == usual
