"""COCO-Object's label maps: COCO's 80 things, and background."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from nerve_fast.datasets.dataset import read_mask
from nerve_fast.datasets.instances import drawings
from nerve_fast.datasets.layouts import LAYOUTS
from nerve_fast.datasets.vocabulary import classes_of
from nerve_fast.errors import InputError
from nerve_fast.imaging.images import opened
from nerve_fast.utils.files import prepare_folder, refuse_foreign, written_whole
from nerve_fast.utils.text import plain

MARK = b"tEXtsource\0"
"""What label maps that were written here hold at their start."""


def convert(root: Path, source: str = "instances") -> int:
    """Write ``annotations/val2017/*_instanceTrainIds.png``, 8-bit grey; 0 is background.

    What is there, readable and not made from the other source, is left alone.

    Args:
        root: of COCO, with ``annotations/``.
        source: ``"instances"`` is ``annotations/instances_val2017.json``. Where instances overlap,
            the one that stands first in the file is on top; crowds are of their class; no pixel is
            left out. So do COCO-Stuff's authors draw things (``extractThings.m`` of
            nightrome/cocostuff10k), and so do the loaders that read COCO as semantic segmentation.
            ``"stuff"`` is COCO-Stuff's ``*_labelTrainIds.png``: things as they are, all else, the
            unlabelled too, background. This is what ``convert_coco_object.py`` of GroupViT and the
            SCLIP line does, so their figures are of these maps.

    Returns:
        The exit code: 2 where a map could not be made, of which a line says why, else 0.

    Raises:
        InputError: the source as a whole is missing or not what it should be, pycocotools is not
            installed, or the folder cannot be written.
    """
    layout = LAYOUTS["coco-object"]
    folder = root / layout.masks
    maps = {"instances": _of_instances, "stuff": _of_stuff}[source](root)
    prepare_folder(folder)
    written = failed = 0
    for name, draw in tqdm(maps.items(), "label maps", unit="map", disable=None):
        path = folder / (name + layout.endings[1])
        try:
            if _is_done(path, source):
                continue
            refuse_foreign(path, MARK)
            _write(path, draw(), source)
            written += 1
        except InputError as error:
            failed += 1
            tqdm.write(plain(str(error)), file=sys.stderr)
    there = len(maps) - written - failed
    print(
        f"{written} label map{'s' * (written != 1)} written to {folder}, {there} there already"
        + f", {failed} could not be made" * (failed > 0)
    )
    return 2 if failed else 0


def _write(path: Path, drawn: np.ndarray, source: str) -> None:
    info = PngInfo()
    info.add_text("source", source)
    with written_whole(path) as file:
        Image.fromarray(drawn).save(file, format="PNG", pnginfo=info)


def _is_done(path: Path, source: str) -> bool:
    """Say whether a map is there, readable, and not made from the other source."""
    try:
        read_mask(path)
        with opened(path) as image:
            return image.info.get("source", source) == source
    except InputError:
        return False


def _of_instances(root: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Return a function that draws the ``(H, W)`` uint8 label map of an image."""
    return drawings(root / "annotations" / "instances_val2017.json")


def _of_stuff(root: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Return a function that draws the ``(H, W)`` uint8 label map of an image."""
    folder, ending = root / LAYOUTS["coco-stuff"].masks, LAYOUTS["coco-stuff"].endings[1]
    paths = sorted(folder.glob(f"*{ending}"))
    if not paths:
        raise InputError(f"{folder}: holds no *{ending}, COCO-Stuff's label maps")
    return {path.name.removesuffix(ending): functools.partial(_things, path) for path in paths}


def _things(path: Path) -> np.ndarray:
    stuff = read_mask(path)
    things = len(classes_of("coco-object")) - 1
    return np.where(stuff < things, stuff + 1, 0).astype(np.uint8)
