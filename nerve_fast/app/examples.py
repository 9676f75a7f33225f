"""The gallery: scenes of the tiny models' world, and photographs where they have been fetched."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from nerve_fast.errors import InputError
from nerve_fast.imaging.images import PHOTOGRAPHS, load_image
from nerve_fast.tiny.scenes import HELD_OUT_SEED, generate
from nerve_fast.utils.files import cache_folder

SCENES = 6
SCENE_SIZE = (128, 176)
THUMBNAIL = (192, 144)
MOST_PHOTOGRAPHS = 14


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A picture of the gallery.

    Attributes:
        name: of it.
        image: makes it, RGB.
        thumbnail: a small copy.
        words: classes that go with it; empty where none are known.
        clicks: ``(label, x, y)`` for pages without words.
    """

    name: str
    image: Callable[[], Image.Image]
    thumbnail: Image.Image
    words: str = ""
    clicks: tuple[tuple[str, int, int], ...] = ()


def examples() -> list[Example]:
    """All that there are here: scenes, then the photographs of ``make real-data``."""
    return [*(_scene(number) for number in range(1, SCENES + 1)), *_photographs()]


def _scene(count: int) -> Example:
    image, mask, names = generate(HELD_OUT_SEED + count, SCENE_SIZE)
    clicks = []
    for number in np.unique(mask):
        places = np.argwhere(mask == number)
        y, x = places[len(places) // 2].tolist()
        clicks.append((names[number], x, y))
    return Example(f"scene {count}", lambda: image, _small(image), "; ".join(names), tuple(clicks))


def _photographs() -> list[Example]:
    """Those in the cache that are read; a file that is not is passed over."""
    found: list[Example] = []
    folder = cache_folder() / "real" / "photographs"
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if path.suffix.lower() in PHOTOGRAPHS and len(found) < MOST_PHOTOGRAPHS:
            try:
                image = load_image(path)
            except InputError:
                continue
            found.append(Example(path.name, _loader(path), _small(image)))
    return found


def _loader(path: Path) -> Callable[[], Image.Image]:
    return lambda: load_image(path)


def _small(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    return small
