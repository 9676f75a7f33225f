"""Binary masks: for each image a folder with a PNG for each label that occurs, 255 where it is."""

import contextlib
from pathlib import Path

import numpy as np
from PIL import Image

from nerve_fast.errors import InputError
from nerve_fast.imaging.exports.labelled import Labelled, make_folder
from nerve_fast.imaging.visualize import save_picture
from nerve_fast.utils.text import shortened

LONGEST_NAME = 80
"""Bytes of a label in a file's name."""


def folder_of(stem: str) -> str:
    """The name of an image's folder."""
    return f"{stem}.masks"


def write(one: Labelled, folder: Path, tolerance: float) -> list[Path]:
    """Write ``NAME.masks/NUMBER-LABEL.png``, 8-bit grey; returns the paths.

    What an earlier run left in the folder is removed. After an error, nothing of this run is left.
    """
    place = folder / folder_of(one.stem)
    make_folder(place)
    written: list[Path] = []
    try:
        for left in place.glob("*.png"):
            left.unlink()
        for number in one.present():
            path = place / f"{number:03}-{_name(one.labels[number])}.png"
            save_picture(Image.fromarray(one.mask(number).astype(np.uint8) * 255), path)
            written.append(path)
    except BaseException as error:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        with contextlib.suppress(OSError):
            place.rmdir()
        if isinstance(error, OSError):
            raise InputError(f"{place}: cannot be written: {error.strerror or error}") from error
        raise
    return written


def _name(label: str) -> str:
    """A label as a part of a file's name, letters and digits of any alphabet."""
    return shortened("".join(c if c.isalnum() else "_" for c in label), LONGEST_NAME)
