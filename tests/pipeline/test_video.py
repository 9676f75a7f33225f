"""Frames of a film in Python: the window that takes part in the graph."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from nerve_fast import InputError, NerveConfig
from nerve_fast.backbones.source import GraphFeatures
from nerve_fast.imaging.resampling import to_tokens
from nerve_fast.pipeline.budget import DoesNotFitError
from nerve_fast.refiners.walk import walk
from nerve_fast.tiny.scenes import generate

LABELS = ["grass", "snow", "water", "ball", "box", "heart", "house", "tree"]
FAST = NerveConfig(steps=3)


@pytest.fixture(scope="module")
def frames():
    """A scene that stands still, each time with noise of its own."""
    chance = np.random.default_rng(0)
    scene = np.asarray(generate(1_300_002, 64)[0]).astype(float)
    noisy = [np.clip(scene + chance.normal(0, 12, scene.shape), 0, 255) for _ in range(4)]
    return [Image.fromarray(pixels.round().astype(np.uint8)) for pixels in noisy]


def test_without_a_window_each_frame_is_a_call(pipe, frames):
    found = list(pipe.video(frames, LABELS, window=0, threshold=0.4))
    for frame, out in zip(frames, found, strict=True):
        alone = pipe(frame, LABELS, threshold=0.4)
        assert torch.equal(out.label_map, alone.label_map)
        assert torch.allclose(out.walked, alone.walked, atol=1e-5)
        assert torch.allclose(out.prior, alone.prior, atol=1e-6)
        assert out.image.tobytes() == frame.tobytes()


def test_the_window_is_one_walk_over_its_frames(pipe, frames):
    """Beside the grids of three frames put below one another here."""
    *_, out = pipe.video(frames, LABELS, window=2, config=FAST, global_keys=None)
    seen = [pipe.encode(frame) for frame in frames[1:]]
    q, k = (torch.cat([getattr(one.graph, name) for one in seen], 2) for name in ("q", "k"))
    h, w = seen[0].graph.grid
    priors = [pipe.prior.probabilities(one.encoded, [[label] for label in LABELS]) for one in seen]
    prior = torch.cat([to_tokens(maps, (h, w)) for maps in priors], 1)
    entropy = torch.stack([one.entropies(None, "auto").mean for one in seen]).mean(0)
    (walked,) = walk(GraphFeatures(q, k, (3 * h, w)), prior, FAST, entropy=entropy)
    assert torch.allclose(out.walked, walked.maps[:, -h:], atol=1e-5)
    assert out.plan.grid == (3 * h, w)
    assert out.walked.shape == (len(LABELS), h, w)


def test_labels_hold_stiller_with_a_window(pipe, frames):
    def changed(window):
        maps = [out.label_map for out in pipe.video(frames, LABELS, window=window)]
        return sum(int((a != b).sum()) for a, b in itertools.pairwise(maps))

    assert 0 < changed(2) < changed(0)


def test_frames_are_asked_for_one_at_a_time(pipe, frames):
    asked = []

    def stream():
        for frame in frames:
            asked.append(frame)
            yield frame

    results = pipe.video(stream(), LABELS, config=FAST)
    assert asked == []
    next(results)
    assert len(asked) == 1
    assert len(list(results)) == 3


def test_a_file_is_a_film(pipe, frames, make_film):
    path = make_film([np.asarray(frame) for frame in frames], crf="0")
    found = list(pipe.video(path, LABELS, config=FAST))
    assert [out.label_map.shape for out in found] == [(64, 64)] * 4
    with pytest.raises(InputError, match="no such file"):
        next(pipe.video("gone.mp4", LABELS))


def test_the_likeliest_few_are_one_choice_for_a_window(pipe, frames):
    for out in pipe.video(frames[:2], LABELS, top=2, config=FAST):
        assert len(out.labels) == 2
        assert set(out.labels) <= set(LABELS)
        assert int(out.label_map.max()) < 2


def test_keys_in_clusters_say_how_far_they_are_off(pipe, frames):
    *_, out = pipe.video(frames[:2], LABELS, config=FAST, global_keys=64)
    assert out.plan.cluster_error is not None
    assert out.plan.walk.problem.columns == 64


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"window": -1}, InputError, "window is -1; expected 0 or more"),
        ({"window": 1.5}, TypeError, "window is 1.5"),
        ({"window": None}, TypeError, "window is None"),
        ({"labels": []}, InputError, "label"),
        ({"labels": None}, InputError, "expected words, as a film takes no seeds"),
        ({"frames": 3}, TypeError, "frames is a int; expected a path or an iterable"),
        ({"generator": 3}, TypeError, "generator is a int"),
        ({"config": 3}, TypeError, "config is a int"),
        ({"points": {"a": [(1, 1)]}}, TypeError, "points"),
        ({"threshold": 2}, InputError, "threshold"),
        ({"global_keys": 0}, InputError, "global_keys is 0"),
    ],
)
def test_mistakes_are_found_before_the_first_frame(pipe, frames, given, error, said):
    given = {"frames": iter(frames), "labels": LABELS, **given}
    with pytest.raises(error, match=said):
        pipe.video(given.pop("frames"), given.pop("labels"), **given)


def test_a_frame_of_another_size_is_named(pipe, frames):
    results = pipe.video([frames[0], Image.new("RGB", (64, 70))], LABELS, config=FAST)
    next(results)
    with pytest.raises(InputError, match=r"frame 1 has 64 × 70 pixels; expected 64 × 64, as the"):
        next(results)


def test_the_memory_of_the_whole_window_is_planned_at_once(pipe, frames):
    with pytest.raises(DoesNotFitError, match="max_memory is 160MB.*, or fewer frames in the"):
        next(pipe.video(frames, LABELS, window=40, max_memory="160MB"))
    assert next(pipe.video(frames, LABELS, window=1, max_memory="400MB", config=FAST))
