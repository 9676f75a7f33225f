"""Data sets by name: those of the field, any folder of images and masks, the tiny world."""

import dataclasses
import os
from pathlib import Path

from PIL import Image

from nerve_fast.datasets.dataset import Dataset, Sample
from nerve_fast.datasets.layouts import LAYOUTS, check_unique, lines_of, samples_of
from nerve_fast.datasets.vocabulary import NAMES, classes_of
from nerve_fast.errors import InputError, SettingError
from nerve_fast.utils.labels import parse_labels


def load(name: str, root: str | os.PathLike | None) -> Dataset:
    """Load a data set and check that its files exist; their content is read and checked later.

    Args:
        name: one of :data:`NAMES`; ``"folder"``, for ``images/`` and ``masks/`` with the same stems
            and ``names.txt``, one class a line and commas between its words, where a first line
            that begins with ``background`` makes class 0 the background; or ``"tiny"``, for scenes
            that the shipped models have not seen.
        root: the folder that mmsegmentation calls ``data_root``; ``None`` for ``"tiny"``.

    Raises:
        InputError: there is no such data set, or a folder, list, image or mask is missing; or a
            root is given that none reads.
    """
    dataset = find(name, None if root is None else Path(root))
    if name != "tiny":
        for sample in dataset.samples:
            dataset.check_files(sample)
    return dataset


def find(name: str, root: Path | None, max_pixels: int | None = None) -> Dataset:
    """Load a data set as :func:`load` does, but files of samples may be missing.

    Args:
        name, root: as for :func:`load`.
        max_pixels: of a file, above which it is not decoded; ``None`` is Pillow's limit.

    Raises:
        InputError: as for :func:`load`, but for images and masks.
    """
    if name == "tiny":
        from nerve_fast.datasets.tiny import held_out_scenes

        if root is not None:
            raise SettingError("{root} is {0}; leave it out, the data set tiny has no files", root)
        return held_out_scenes()
    if name not in (*NAMES, "folder"):
        raise InputError(
            f"the data set is {name!r}; expected one of {', '.join(NAMES)}, folder, tiny"
        )
    if root is None:
        raise SettingError("{root} is missing; expected the root of the data set {0}", name)
    root = Path(root)
    try:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder; expected the root of the data set {name}")
        found = _folder(root) if name == "folder" else _of_the_field(name, root)
        return dataclasses.replace(found, max_pixels=max_pixels)
    except OSError as error:
        place = error.filename or root
        raise InputError(f"{place}: cannot be read: {error.strerror or error}") from error


def _of_the_field(name: str, root: Path) -> Dataset:
    layout = LAYOUTS[name]
    classes = classes_of(name)
    return Dataset(
        name=name,
        classes=classes,
        has_background=classes[0] == "background",
        samples=samples_of(layout, root),
        reduce_zero_label=layout.reduce_zero_label,
        advice=layout.advice,
    )


def _folder(root: Path) -> Dataset:
    names = root / "names.txt"
    lines = lines_of(names)
    try:
        words = parse_labels(lines)
    except InputError as error:
        raise InputError(f"{names}: {error}") from None
    if len(words) > 255:
        raise InputError(f"{names}: names {len(words)} classes; expected 255 at most")
    images, masks = root / "images", root / "masks"
    for folder in (images, masks):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
    endings = Image.registered_extensions()
    samples = tuple(
        Sample(path.stem, path, masks / f"{path.stem}.png")
        for path in sorted(images.iterdir())
        if path.suffix.lower() in endings and not path.name.startswith(".")
    )
    if not samples:
        raise InputError(f"{images}: holds no image")
    check_unique(samples, images)
    return Dataset(
        name="folder",
        classes=tuple(first for first, *_ in words),
        has_background=words[0][0] == "background",
        samples=samples,
        synonyms=tuple(map(tuple, words)),
    )
