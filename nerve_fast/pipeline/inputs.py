"""Find the images that a run is given, check their names, and read them ahead of time."""

import collections
import itertools
import logging
import os
from collections.abc import Generator, Iterable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from nerve_fast.errors import InputError
from nerve_fast.imaging.images import PHOTOGRAPHS, UNREADABLE, load_image
from nerve_fast.utils.provenance import file_digest

logger = logging.getLogger(__name__)

ENDINGS = ("overlay.png", "heatmaps.png", "steps.png", "npz", "labels.png")
"""Endings of results in the order of writing: the last one says that all results are there."""


class Opened(NamedTuple):
    """An image, and the digest of the file that it was read from."""

    path: Path
    image: Image.Image
    digest: str


def listed(places: Sequence[Path]) -> list[Path]:
    """List images, and those in folders sorted by name; results of earlier runs are left out.

    Raises:
        InputError: a file is not there, or a folder holds no image.
    """
    results = tuple(f".{ending}" for ending in ENDINGS)
    paths = []
    for place in places:
        try:
            inside = sorted(place.iterdir()) if place.is_dir() else [place]
        except OSError as error:
            raise InputError(f"{place}: cannot be read: {error.strerror}") from error
        if place.is_dir():
            every = inside
            inside = [
                path
                for path in every
                if path.suffix.lower() in PHOTOGRAPHS
                and not path.name.startswith(".")
                and not path.name.endswith(results)
            ]
            left_out = [path for path in every if path.suffix.lower() in UNREADABLE]
            for path in left_out:
                logger.warning("%s is left out: %s", path, UNREADABLE[path.suffix.lower()])
            if not inside:
                raise InputError(f"{place}: holds no image, {' '.join(sorted(PHOTOGRAPHS))}")
        elif not place.exists():
            raise InputError(f"{place}: no such file")
        paths += inside
    return paths


def check_names(images: Sequence[Path], folder: Path) -> None:
    """Check that no result overwrites an image or another result; results have the image's stem.

    Raises:
        InputError: two images have the same stem, or a result would overwrite an image.
    """
    # Unlike Path.resolve, it takes a link that leads to itself.
    inputs = {os.path.realpath(path): path for path in images}
    first: dict[str, Path] = {}
    for path in images:
        if path.stem in first:
            raise InputError(
                f"{first[path.stem]} and {path} would both be written as {path.stem}.*; rename "
                "one, or write them to different folders"
            )
        first[path.stem] = path
        for ending in ENDINGS:
            target = os.path.realpath(folder / f"{path.stem}.{ending}")
            if target in inputs:
                raise InputError(
                    f"the result {Path(target).name} of {path} would overwrite the image "
                    f"{inputs[target]}; write to another folder"
                )


def fail(failed: MutableMapping[Path, str], path: Path, reason: str) -> None:
    """Add an image to ``failed`` and log why."""
    failed[path] = reason
    logger.error("%s", reason)


def readable(
    paths: Iterable[Path], ahead: int, failed: MutableMapping[Path, str]
) -> Generator[Opened, None, None]:
    """Yield images in order, reading ahead; one that cannot be read is put in ``failed``."""
    waiting: collections.deque = collections.deque()
    paths = iter(paths)
    # One thread: decoding is quicker than all that follows.
    reader = ThreadPoolExecutor(1)
    try:
        while True:
            for path in itertools.islice(paths, ahead - len(waiting)):
                waiting.append((path, reader.submit(read, path)))
            if not waiting:
                return
            path, opened = waiting.popleft()
            try:
                yield opened.result()
            except InputError as error:
                fail(failed, path, str(error))
            del opened
    finally:
        reader.shutdown(cancel_futures=True)


def read(path: Path) -> Opened:
    """Read an image.

    Raises:
        InputError: the file cannot be read, or holds no image.
    """
    image = load_image(path)
    try:
        return Opened(path, image, file_digest(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Yield lists of ``size`` items; the last list may be shorter."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch
