import pytest
import torch
from torch.nn.functional import interpolate

from nerve_fast import InputError
from nerve_fast.evaluation.presets import Settings
from nerve_fast.evaluation.segmenter import Segmenter, prior_of
from nerve_fast.priors import CLIPPrior, PriorConfig
from nerve_fast.refiners import PAMR
from nerve_fast.tiny.scenes import NAMES, generate

CLASSES = tuple((name,) for name in NAMES)


def segmenter(pipe, refiner=None, **changes):
    settings = Settings(
        prior="naclip",
        refiner="none",
        vocabulary="plain",
        protocol="mmseg",
        resolution=100,
        window=64,
        stride=32,
        logit_scale=20.0,
        **changes,
    )
    prior = CLIPPrior(pipe.prior.clip, prior_of(settings))
    return Segmenter(prior, settings, CLASSES, False, refiner, names=NAMES)


def test_similarities_and_not_probabilities_are_brought_to_pixels(pipe):
    """Also with PAMR, which NACLIP lets refine similarities."""
    image = generate(990_100, (70, 90))[0]
    config = PriorConfig("naclip", 100, 64, 32, 20.0, "mmseg")
    similarity = CLIPPrior(pipe.prior.clip, config).similarities([image], NAMES)
    at_pixels = interpolate(similarity, (70, 90), mode="bilinear")[0]
    for refiner in (None, PAMR(3, (1, 2))):
        refined = refiner(image, similarity[0]) if refiner else at_pixels
        probabilities = torch.softmax(20.0 * refined, dim=0)
        largest, expected = probabilities.max(0)
        found = segmenter(pipe, refiner)(image)
        assert (found == expected).double().mean() > 0.999
        found = segmenter(pipe, refiner, threshold=0.4)(image)
        # The data set has no background: no label.
        expected = expected.masked_fill(largest < 0.4, len(CLASSES))
        assert (found == expected).double().mean() > 0.999
        assert 0.05 < (largest < 0.4).double().mean() < 0.95


def test_thresholds_may_be_by_class_and_a_class_takes_what_is_under_them(pipe):
    image = generate(990_100, (70, 90))[0]
    plain = segmenter(pipe)(image)
    often = int(plain.flatten().bincount().argmax())
    found = segmenter(pipe, threshold={NAMES[often]: 1.0})(image)
    assert torch.equal(found, plain.masked_fill(plain == often, len(NAMES)))
    other = (often + 1) % len(NAMES)
    found = segmenter(pipe, threshold={NAMES[often]: 1.0}, under=NAMES[other])(image)
    assert torch.equal(found, plain.masked_fill(plain == often, other))


def test_other_refiners_get_probabilities(pipe):
    image = generate(990_100, (70, 90))[0]
    seen = []

    class Refiner:
        needs_graph = False
        linear = False

        def __call__(self, image, probabilities, graph):
            seen.append(probabilities)
            return probabilities.roll(1, 0)

    config = PriorConfig("naclip", 100, 64, 32, 20.0, "mmseg")
    similarity = CLIPPrior(pipe.prior.clip, config).similarities([image], NAMES)
    expected = torch.softmax(20.0 * similarity, dim=1)
    found = segmenter(pipe, Refiner())(image)
    torch.testing.assert_close(seen[0], expected[0])
    at_pixels = interpolate(expected, (70, 90), mode="bilinear")[0]
    assert (found == (at_pixels.argmax(0) + 1) % len(NAMES)).double().mean() > 0.999


def test_values_that_are_not_finite_are_no_labels(pipe, monkeypatch):
    features = pipe.prior.clip.patch_features
    monkeypatch.setattr(
        type(pipe.prior.clip),
        "patch_features",
        lambda self, *given: features(*given) * float("nan"),
    )
    with pytest.raises(InputError, match="the prior's network gave values that are not finite"):
        segmenter(pipe)(generate(990_100, (70, 90))[0])
