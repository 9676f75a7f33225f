import numpy as np
import pytest

from nerve_fast.imaging.exports import Labelled

LABELS = ("background", "cat, kitten", "a: dog", "grass", "never")


@pytest.fixture
def chance(generator):
    return np.random.default_rng(generator.initial_seed())


@pytest.fixture
def make_labelled(chance):
    """``make_labelled(stem, labels)``: blobs of all labels but the last, and pixels without any."""

    def make(stem="photo", labels=LABELS):
        height, width = chance.integers(20, 50, 2)
        coarse = chance.integers(-1, len(labels) - 1, (height // 4 + 1, width // 4 + 1))
        label_map = np.kron(coarse, np.ones((4, 4), np.int64))[:height, :width]
        noise = chance.random((height, width)) < 0.1
        label_map = np.where(noise, chance.integers(-1, len(labels) - 1, noise.shape), label_map)
        label_map[:2, :2] = [[-1, 0], [1, 2]]
        confidences = chance.random(len(labels))
        confidences[-1] = np.nan
        return Labelled(f"{stem}.jpg", stem, label_map.astype(np.int32), confidences, labels)

    return make
