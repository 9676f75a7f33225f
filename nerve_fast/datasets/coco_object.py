"""COCO-Object's label maps: COCO's 80 things, and background."""

import contextlib
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from nerve_fast.datasets.dataset import read_mask
from nerve_fast.datasets.layouts import LAYOUTS
from nerve_fast.datasets.vocabulary import classes_of
from nerve_fast.errors import InputError
from nerve_fast.utils.files import prepare_folder, written_whole


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
        The exit code, 0.

    Raises:
        InputError: the source is missing or not what it should be, pycocotools is not installed, or
            the maps cannot be written.
    """
    layout = LAYOUTS["coco-object"]
    folder = root / layout.masks
    drawings = {"instances": _of_instances, "stuff": _of_stuff}[source](root)
    prepare_folder(folder)
    written = 0
    for name, draw in tqdm(drawings.items(), "label maps", unit="map", disable=None):
        path = folder / (name + layout.endings[1])
        if _is_done(path, source):
            continue
        info = PngInfo()
        info.add_text("source", source)
        with written_whole(path) as file:
            Image.fromarray(draw()).save(file, format="PNG", pnginfo=info)
        written += 1
    there = len(drawings) - written
    print(f"{written} label map{'s' * (written != 1)} written to {folder}, {there} there already")
    return 0


def _is_done(path: Path, source: str) -> bool:
    """Whether a map is there and readable; what others made is taken for the source asked for."""
    if not path.exists():
        return False
    try:
        read_mask(path)
    except InputError:
        return False
    with Image.open(path) as image:
        return image.info.get("source", source) == source


def _of_instances(root: Path) -> dict[str, Callable[[], np.ndarray]]:
    """What draws the ``(H, W)`` uint8 label map of each image."""
    try:
        from pycocotools.coco import COCO
    except ImportError:
        raise InputError(
            'pycocotools is not installed; get it: pip install "nerve-fast[data]"'
        ) from None
    path = root / "annotations" / "instances_val2017.json"
    coco = COCO()
    try:
        coco.dataset = json.loads(path.read_text(encoding="utf-8"))
        # It prints what it does.
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        things = [coco.cats[number]["name"] for number in sorted(coco.cats)]
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; it is in COCO's annotations_trainval2017.zip"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not COCO's instance annotations ({error!r})") from None
    if things != list(classes_of("coco-object")[1:]):
        raise InputError(f"{path}: has {len(things)} categories; expected COCO's 80, and no other")
    labels = {number: label for label, number in enumerate(sorted(coco.cats), start=1)}
    return {
        Path(image["file_name"]).stem: functools.partial(_drawn, coco, image, labels)
        for image in coco.imgs.values()
    }


def _drawn(coco, image: dict, labels: dict[int, int]) -> np.ndarray:
    drawn = np.zeros((image["height"], image["width"]), np.uint8)
    for annotation in reversed(coco.imgToAnns[image["id"]]):
        drawn[coco.annToMask(annotation) > 0] = labels[annotation["category_id"]]
    return drawn


def _of_stuff(root: Path) -> dict[str, Callable[[], np.ndarray]]:
    """What draws the ``(H, W)`` uint8 label map of each image."""
    folder, ending = root / LAYOUTS["coco-stuff"].masks, LAYOUTS["coco-stuff"].endings[1]
    paths = sorted(folder.glob(f"*{ending}"))
    if not paths:
        raise InputError(f"{folder}: holds no *{ending}, COCO-Stuff's label maps")
    return {path.name.removesuffix(ending): functools.partial(_things, path) for path in paths}


def _things(path: Path) -> np.ndarray:
    stuff = read_mask(path)
    things = len(classes_of("coco-object")) - 1
    return np.where(stuff < things, stuff + 1, 0).astype(np.uint8)
