"""COCO's JSON: a run-length encoded mask for each label of each image, one file a run."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nerve_fast.imaging.exports.labelled import Labelled
from nerve_fast.utils.files import written_whole
from nerve_fast.utils.text import plain

INFO = {"contributor": "nerve-fast"}
MARK = f'{{"info": {json.dumps(INFO)}'.encode()
"""What the files that are written here start with."""

FILE = "coco.json"


def write(folder: Path, labels: Sequence[str], images: Iterable[Labelled]) -> None:
    """Write ``coco.json``, whole or not at all; the labels of one image at a time in memory."""
    entries, first = [], 1
    with written_whole(folder / FILE) as path, path.open("w", encoding="utf-8") as file:
        file.write(f'{{"info": {json.dumps(INFO)},\n"licenses": [],\n"categories": ')
        file.write(json.dumps(categories(labels)))
        file.write(',\n"annotations": [')
        for number, one in enumerate(images, start=1):
            for annotation in annotations(one, number, first):
                file.write(",\n"[first == 1 :] + json.dumps(annotation))
                first += 1
            entries.append(entry(one, number))
        file.write(f'],\n"images": {json.dumps(entries)}}}\n')


def document(one: Labelled) -> dict[str, Any]:
    """One image's labels in COCO's form, for JSON; the image has the id 1."""
    return {
        "info": INFO,
        "licenses": [],
        "categories": categories(one.labels),
        "annotations": annotations(one, 1, 1),
        "images": [entry(one, 1)],
    }


def categories(labels: Sequence[str]) -> list[dict]:
    """A category for each label, whose id is its number and 1."""
    return [{"id": number, "name": label} for number, label in enumerate(labels, start=1)]


def entry(one: Labelled, image_id: int) -> dict:
    """An image of the list of images."""
    height, width = one.label_map.shape
    return {"id": image_id, "file_name": plain(one.image), "width": width, "height": height}


def annotations(one: Labelled, image_id: int, first: int) -> list[dict]:
    """An annotation for each label that occurs, with ids from ``first`` on.

    ``iscrowd`` is 0, as in COCO's annotations of stuff: a label's pixels are one segment. ``score``
    is the label's confidence.
    """
    from pycocotools import mask as rle

    found = []
    for place, number in enumerate(one.present()):
        encoded = rle.encode(np.asfortranarray(one.mask(number), dtype=np.uint8))
        found.append(
            {
                "id": first + place,
                "image_id": image_id,
                "category_id": number + 1,
                "segmentation": {
                    "size": [int(side) for side in encoded["size"]],
                    "counts": encoded["counts"].decode("ascii"),
                },
                "area": int(rle.area(encoded)),
                "bbox": rle.toBbox(encoded).tolist(),
                "iscrowd": 0,
                "score": one.confidence(number),
            }
        )
    return found
