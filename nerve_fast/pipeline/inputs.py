"""Find the images that a run is given, check their names, and read them ahead of time."""

import collections
import itertools
import logging
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from nerve_fast.errors import InputError
from nerve_fast.imaging.exports import EXPORTS
from nerve_fast.imaging.images import PHOTOGRAPHS, load_image, why_left_out
from nerve_fast.utils.provenance import file_digest

logger = logging.getLogger(__name__)

ENDINGS = ("overlay.png", "heatmaps.png", "steps.png", "npz", "labels.png")
"""Endings of results in the order of writing: the last one says that all results are there."""

VIDEO_ENDINGS = ("overlay.mp4", "legend.png", "labels.npz")
"""The same of a video."""

MOST_NAMED = 10
"""Files of a folder that a note names, of those that are left out for one reason."""


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
    paths = []
    for place in places:
        try:
            inside = sorted(place.iterdir()) if place.is_dir() else [place]
        except OSError as error:
            raise InputError(f"{place}: cannot be read: {error.strerror}") from error
        if place.is_dir():
            others = [path for path in inside if not _is_ours(path)]
            reasons = {path: why_left_out(path) for path in others}
            inside = [path for path, reason in reasons.items() if reason is None]
            _say_left_out(place, reasons)
            if not inside:
                raise InputError(f"{place}: holds no image, {' '.join(sorted(PHOTOGRAPHS))}")
        elif not place.exists():
            raise InputError(f"{place}: no such file")
        paths += inside
    return paths


def _is_ours(path: Path) -> bool:
    """Whether a file is hidden, or has the name of a result."""
    endings = [f".{ending}" for ending in (*ENDINGS, *VIDEO_ENDINGS)]
    endings += [name for export in EXPORTS.values() for name in export.places("")]
    shared = {Path(name).parts[0] for export in EXPORTS.values() for name in export.files}
    return path.name.startswith(".") or path.name.endswith(tuple(endings)) or path.name in shared


def _say_left_out(folder: Path, reasons: Mapping[Path, str | None]) -> None:
    """Name what a folder holds beside images, in one line for each reason."""
    named: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        if reason is not None:
            named.setdefault(reason, []).append(path.name)
    for reason, names in named.items():
        if len(names) == 1:
            logger.warning("%s/%s is left out: it %s", folder, names[0], reason)
            continue
        said = ", ".join(names[:MOST_NAMED])
        if len(names) > MOST_NAMED:
            said += f" and {len(names) - MOST_NAMED} more"
        logger.warning("%s: %s are left out: each %s", folder, said, reason)


def check_names(images: Sequence[Path], folder: Path, endings: Sequence[str] = ENDINGS) -> None:
    """Check that no result overwrites an image or another result; results have the image's stem.

    Args:
        images: what is read.
        folder: that results are written to.
        endings: of the results.

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
        for ending in endings:
            target = os.path.realpath(folder / f"{path.stem}.{ending}")
            if target in inputs:
                raise InputError(
                    f"the result {Path(target).name} of {path} would overwrite the input "
                    f"{inputs[target]}; write to another folder"
                )


def fail(failed: MutableMapping[Path, str], path: Path, reason: str) -> None:
    """Add an image to ``failed`` and log why."""
    failed[path] = reason
    logger.error("%s", reason)


def readable(
    paths: Iterable[Path],
    ahead: int,
    failed: MutableMapping[Path, str],
    max_pixels: int | None = None,
) -> Generator[Opened, None, None]:
    """Yield images in order, reading ahead; one that cannot be read is put in ``failed``.

    Args:
        paths: of the images.
        ahead: how many are read before they are asked for.
        failed: by path, why.
        max_pixels: above which an image is not decoded, see :func:`read`.
    """
    waiting: collections.deque = collections.deque()
    paths = iter(paths)
    # One thread: decoding is quicker than all that follows.
    reader = ThreadPoolExecutor(1)
    try:
        while True:
            for path in itertools.islice(paths, ahead - len(waiting)):
                waiting.append((path, reader.submit(read, path, max_pixels)))
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


def read(path: Path, max_pixels: int | None = None) -> Opened:
    """Read an image.

    Args:
        path: of the image.
        max_pixels: above which it is not decoded, as for
            :func:`~nerve_fast.imaging.images.load_image`.

    Raises:
        InputError: the file cannot be read, or holds no image.
    """
    image = load_image(path, max_pixels=max_pixels)
    try:
        return Opened(path, image, file_digest(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Yield lists of ``size`` items; the last list may be shorter."""
    items = iter(items)
    while batch := list(itertools.islice(items, min(size, sys.maxsize))):
        yield batch
