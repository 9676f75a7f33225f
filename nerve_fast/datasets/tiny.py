"""The world of the tiny models as a data set, drawn when it is read."""

from pathlib import Path
from typing import cast

from PIL import Image
from torch import Tensor, tensor, uint8

from nerve_fast.datasets.dataset import Dataset, Sample
from nerve_fast.tiny.scenes import HELD_OUT_SEED, NAMES, generate

SCENES = 100
SIDE = 128
"""The side in pixels that the shipped models were trained at; objects keep their size in larger
scenes."""


class Scenes(Dataset):
    """Scenes instead of files; a sample's name is its seed."""

    def read(self, sample: Sample) -> tuple[Image.Image, Tensor]:
        """Draw a scene and its labels, which are indices into the names of all scenes."""
        image, mask, names = generate(int(sample.name), SIDE)
        everywhere = tensor([NAMES.index(name) for name in names], dtype=uint8)
        return image, everywhere[mask]


def held_out_scenes() -> Dataset:
    """100 scenes of 128 × 128 pixels that neither training nor tuning has seen."""
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + SCENES)
    no_file = cast(Path, None)  # What reads samples passes over it.
    return Scenes(
        name="tiny",
        classes=NAMES,
        has_background=False,
        samples=tuple(Sample(str(seed), no_file, no_file) for seed in seeds),
    )
