"""The files of exports that the images of a run share, made of their label maps on disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nerve_fast.errors import InputError
from nerve_fast.imaging.exports import EXPORTS, Export, Labelled
from nerve_fast.imaging.exports.labelled import numbered
from nerve_fast.imaging.images import opened
from nerve_fast.pipeline.asked import SegmentSettings
from nerve_fast.pipeline.marks import stamp_of
from nerve_fast.utils.files import refuse_foreign, shown


def begin(asked: SegmentSettings, *, changes: bool) -> None:
    """Look at what is in the way of shared files, before any image is segmented.

    Args:
        asked: what is done.
        changes: whether images are going to be segmented: what an earlier run wrote is no longer of
            the images in the folder, and is removed.

    Raises:
        InputError: a file is there that was not made by ``segment``, or cannot be removed.
    """
    for export in _shared(asked):
        places = [Path(asked.output, name) for name in export.files]
        refuse_foreign(places[0], export.mark)
        for place in places[1:]:
            # It has no mark; it is made with the first.
            if place.exists() and not places[0].exists():
                raise InputError(
                    f"{shown(place)}: was not made by this command, and is left alone; move it "
                    "away, or write to another place"
                )
        for place in reversed(places if changes else []):
            try:
                place.unlink(missing_ok=True)
            except OSError as error:
                reason = error.strerror or error
                raise InputError(f"{shown(place)}: cannot be replaced: {reason}") from error


def refuse_foreign_files(asked: SegmentSettings, stem: str) -> None:
    """Raise where exports of an image would overwrite files that ``segment`` did not make.

    Args:
        asked: what is done.
        stem: of the image's results.

    Raises:
        InputError: such a file is there.
    """
    for name in asked.export:
        for place, mark in EXPORTS[name].places(stem).items():
            path = Path(asked.output, place)
            try:
                is_folder = path.is_dir() and not path.is_symlink()
                inside = sorted(path.iterdir()) if is_folder else [path]
            except OSError as error:
                reason = error.strerror or error
                raise InputError(f"{shown(path)}: cannot be read: {reason}") from error
            for one in inside:
                refuse_foreign(one, mark)


def finish(asked: SegmentSettings, images: Sequence[Path], made_with: str) -> None:
    """Write the shared files, of those images whose results are there and of these settings.

    Args:
        asked: what is done.
        images: of the run, in order.
        made_with: the digest of the settings.

    Raises:
        InputError: a file cannot be written.
    """
    for export in _shared(asked):
        write = export.write_run
        if write is not None and next(_labelled(asked, images, made_with), None) is not None:
            write(Path(asked.output), asked.vocabulary, _labelled(asked, images, made_with))


def _shared(asked: SegmentSettings) -> list[Export]:
    return [EXPORTS[name] for name in asked.export if EXPORTS[name].write_run]


def _labelled(asked: SegmentSettings, images: Sequence[Path], made_with: str) -> Iterator[Labelled]:
    """The labels of the images that have been segmented, one at a time."""
    labels = asked.vocabulary
    for image in images:
        path = Path(asked.output, f"{image.stem}.labels.png")
        made = stamp_of(path) or {}
        if made.get("settings") != made_with or "confidences" not in made:
            continue
        with opened(path, asked.most_pixels) as picture:
            own = picture.info["labels"].split("\n")
            values = np.array(picture).astype(np.int32)
        values[values == (255 if len(own) < 256 else 65_535)] = -1
        renumbered = numbered(values, own, made["confidences"], labels)
        yield Labelled(image.name, image.stem, *renumbered, labels)
