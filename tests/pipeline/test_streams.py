"""A call on what gives images one after another."""

import gc
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

import nerve_fast as nf
from nerve_fast.pipeline.jobs import Job, is_stream
from nerve_fast.tiny.scenes import generate

LABELS = ["grass", "water, sea", "ball"]
QUICK = {"config": nf.NerveConfig(steps=1), "processing_resolution": 64}


@pytest.fixture(scope="module")
def scenes():
    return [generate(960_100 + i, (64, 96) if i == 2 else 64)[0] for i in range(5)]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_results_come_as_they_are_made_and_are_those_of_a_list(pipe, scenes, batch_size):
    taken = []

    def images():
        for number, scene in enumerate(scenes):
            taken.append(number)
            yield scene

    expected = pipe(scenes, LABELS, batch_size=batch_size, **QUICK)
    results = pipe(images(), LABELS, batch_size=batch_size, **QUICK)
    assert taken == []
    for number, (out, other) in enumerate(zip(results, expected, strict=True)):
        # No image is asked for before the batch that it is in.
        assert len(taken) == min((number // batch_size + 1) * batch_size, len(scenes))
        assert torch.equal(out.label_map, other.label_map)
        assert torch.equal(out.walked, other.walked)
    assert taken == list(range(5))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_no_more_than_a_batch_is_in_memory(pipe, scenes, batch_size, monkeypatch):
    jobs, results = weakref.WeakSet(), weakref.WeakSet()
    seen = []

    class Watched(Job):
        def __init__(self, *given):
            super().__init__(*given)
            jobs.add(self)

    def images():
        for _ in range(2 * batch_size + 1):
            gc.collect()
            seen.append((len(jobs), len(results)))
            yield scenes[0]

    monkeypatch.setattr("nerve_fast.pipeline.jobs.Job", Watched)
    for out in pipe(images(), LABELS, batch_size=batch_size, **QUICK):
        results.add(out)
        del out
    # What came before in the same batch, and nothing of those before.
    assert seen == [(number % batch_size, 0) for number in range(2 * batch_size + 1)]


class Pictures:
    """A data set as torch and transformers know it."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        return self.images[number]


def test_a_data_set_and_an_iterator_are_streams(pipe, scenes):
    expected = pipe(scenes[0], LABELS, **QUICK).label_map
    for given in (Pictures(scenes[:1]), iter(scenes[:1]), map(np.asarray, scenes[:1])):
        (out,) = pipe(given, LABELS, **QUICK)
        assert torch.equal(out.label_map, expected)
    features = (pipe.encode(scene, processing_resolution=64) for scene in scenes[:1])
    (out,) = pipe(features, LABELS, config=QUICK["config"])
    assert torch.equal(out.label_map, expected)
    assert list(pipe(iter([]), LABELS)) == []


def test_what_is_an_image_or_a_list_is_no_stream(scenes, pipe):
    features = pipe.encode(scenes[0], processing_resolution=64)
    for given in (scenes[0], np.asarray(scenes[0]), "a.png", b"a", scenes, tuple(scenes), features):
        assert not is_stream(given)
    for given in (None, 3, {}, set(), torch.zeros(3)):
        assert not is_stream(given)


def test_mistakes_are_found_before_the_first_image(pipe, scenes):
    def images():
        raise AssertionError("an image was asked for")
        yield

    cases = [
        ({"labels": []}, "labels is empty"),
        ({"labels": None}, "neither labels nor seeds are given"),
        ({"labels": LABELS, "threshold": 2}, "threshold is 2"),
        ({"labels": LABELS, "points": {"ball": [(1, 1)]}}, "points are given, and the images come"),
        ({"labels": LABELS, "generator": [torch.Generator()]}, "generator is a list of 1"),
    ]
    for given, said in cases:
        with pytest.raises(nf.InputError, match=said):
            pipe(images(), **given)


def test_an_image_that_cannot_be_read_is_refused_in_its_turn(pipe, scenes, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    results = pipe(iter([scenes[0], tmp_path / "broken.png", scenes[0]]), LABELS, **QUICK)
    assert next(results).label_map.shape == (64, 64)
    with pytest.raises(nf.InputError, match="broken.png: not an image"):
        next(results)


def test_gradients_are_the_callers_own_between_results(pipe, scenes):
    results = pipe(iter(scenes[:2]), LABELS, **QUICK)
    for out in results:
        assert torch.is_grad_enabled()
        assert not out.walked.requires_grad
    images = [Image.new("RGB", (64, 64))]
    assert isinstance(pipe(images, LABELS, **QUICK), list)
