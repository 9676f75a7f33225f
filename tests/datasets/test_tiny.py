import pickle

import torch

from nerve_fast.datasets import load, words
from nerve_fast.tiny.scenes import HELD_OUT_SEED, NAMES, generate


def test_held_out_scenes_are_drawn_with_their_truth():
    dataset = load("tiny", None)
    assert len(dataset) == 100
    assert not dataset.has_background
    assert words(dataset, "plain") == tuple((name,) for name in NAMES)
    seeds = [int(sample.name) for sample in dataset.samples]
    assert seeds == list(range(HELD_OUT_SEED, HELD_OUT_SEED + 100))
    # A process of its own gets it pickled.
    dataset = pickle.loads(pickle.dumps(dataset))
    image, labels = dataset.read(dataset.samples[3])
    drawn, mask, names = generate(HELD_OUT_SEED + 3, 128)
    assert image.tobytes() == drawn.tobytes()
    assert labels.dtype == torch.uint8
    assert labels.shape == (128, 128)
    assert [NAMES[label] for label in labels[::97, 5]] == [names[label] for label in mask[::97, 5]]
    assert set(labels.unique().tolist()) == {NAMES.index(names[label]) for label in mask.ravel()}
