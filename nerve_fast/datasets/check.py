"""A data set, read from end to end before anything runs on it."""

from pathlib import Path

from tqdm import tqdm

from nerve_fast.datasets.layouts import LAYOUTS
from nerve_fast.datasets.loading import find
from nerve_fast.errors import InputError
from nerve_fast.utils.text import plain
from nerve_fast.utils.units import parse_pixels

LINES = 20
"""How many problems are printed one by one."""


def check(name: str, root: Path, max_pixels: int | str | None = None) -> int:
    """Read all images and masks; print a line for each problem, and a summary.

    Args:
        name, root: of the data set.
        max_pixels: of a file, above which it is not decoded: a number or such as ``"400MP"``;
            ``None`` is Pillow's limit.

    Returns:
        The exit code: 2 where there is a problem, else 0.

    Raises:
        InputError: the data set cannot even be listed, or ``max_pixels`` is not usable.
    """
    dataset = find(name, root, None if max_pixels is None else parse_pixels(max_pixels))
    problems = 0
    for sample in tqdm(dataset.samples, "images", unit="image", disable=None):
        try:
            dataset.read(sample)
        except InputError as error:
            problems += 1
            if problems <= LINES:
                tqdm.write(plain(str(error)))
    if problems > LINES:
        print(f"and {problems - LINES} more")
    if name in LAYOUTS and len(dataset) != LAYOUTS[name].size:
        print(f"note: {LAYOUTS[name].size} images were published, here are {len(dataset)}")
    found = f"{problems} problem{'s' * (problems != 1)}" if problems else "no problem"
    images = f"{len(dataset)} image{'s' * (len(dataset) != 1)}"
    print(f"{name}: {images}, {len(dataset.classes)} classes, {found}")
    return 2 if problems else 0
