"""The outlines of labels: polygons with holes, in JSON, one file an image."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from nerve_fast.imaging.exports.labelled import Labelled
from nerve_fast.utils.files import written_whole
from nerve_fast.utils.text import plain

MARK = b'{"software": "nerve-fast"'
"""What the files that are written here start with."""

Ring = list[list[float]]


def file_of(stem: str) -> str:
    """The name of an image's file."""
    return f"{stem}.polygons.json"


def write(one: Labelled, folder: Path, tolerance: float) -> list[Path]:
    """Write ``NAME.polygons.json``, whole or not at all; returns its path."""
    path = folder / file_of(one.stem)
    height, width = one.label_map.shape
    document = {
        "software": "nerve-fast",
        "image": plain(one.image),
        "width": width,
        "height": height,
        "tolerance": tolerance,
        "regions": regions(one, tolerance),
    }
    with written_whole(path) as file:
        file.write_text(json.dumps(document) + "\n", encoding="utf-8")
    return [path]


def regions(one: Labelled, tolerance: float) -> list[dict[str, Any]]:
    """The polygons of each label that occurs, for JSON."""
    areas = one.areas()
    return [
        {
            "label": one.labels[number],
            "number": number,
            "area": areas[number],
            "confidence": one.confidence(number),
            "polygons": outlines(one.mask(number), tolerance),
        }
        for number in one.present()
    ]


def outlines(mask: np.ndarray, tolerance: float) -> list[dict[str, Any]]:
    """The polygons that cover a mask, along the edges of its pixels.

    Args:
        mask: ``(H, W)`` bool.
        tolerance: how far, in pixels, a simplified outline may be from the edges of the pixels; at
            0 the polygons cover the mask's pixels exactly.

    Returns:
        ``{"exterior": ring, "holes": [ring, …]}`` for each part of the mask. A ring is a list of
        ``[x, y]`` in pixels from the image's top left corner, the first point not repeated; the
        pixel in column ``x`` and row ``y`` reaches from ``[x, y]`` to ``[x + 1, y + 1]``.
    """
    import shapely

    # At 0 what goes are the points between corners.
    covered = shapely.union_all(shapely.box(*_boxes(mask))).simplify(0)
    parts = [
        _simplified(part, tolerance)
        for part in getattr(covered, "geoms", [covered])
        if not part.is_empty
    ]
    return [
        {"exterior": _ring(part.exterior), "holes": [_ring(hole) for hole in part.interiors]}
        for part in parts
    ]


def _simplified(part, tolerance: float):
    """A polygon whose rings have fewer corners, none of its own being farther than the tolerance.

    Ring by ring by Douglas and Peucker's rule, which holds the tolerance; GEOS's rule for whole
    polygons does not where a ring begins. A ring that would vanish stays as it is, and where rings
    would cross, all of the polygon is simplified less.
    """
    import shapely

    within = tolerance
    while True:
        rings = [_fewer(ring, within) for ring in (part.exterior, *part.interiors)]
        simple = shapely.Polygon(rings[0], rings[1:])
        # At 0 it is the polygon itself.
        if within == 0 or simple.is_valid:
            return simple
        within /= 2


def _fewer(ring, within: float):
    import shapely

    line = shapely.LineString(ring.coords).simplify(within, preserve_topology=False)
    return line if len(line.coords) >= 4 else ring


def _boxes(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Left, top, right and bottom of rectangles that cover a mask: runs, equal ones joined."""
    padded = np.pad(mask.astype(np.int8), ((0, 0), (1, 1)))
    steps = np.diff(padded, axis=1)
    rows, left = (steps == 1).nonzero()
    right = (steps == -1).nonzero()[1]
    order = np.lexsort((rows, right, left))
    rows, left, right = rows[order], left[order], right[order]
    first = np.ones(len(rows), bool)
    first[1:] = (np.diff(left) != 0) | (np.diff(right) != 0) | (np.diff(rows) != 1)
    last = np.roll(first, -1)
    return left[first], rows[first], right[first], rows[last] + 1


def _ring(ring) -> Ring:
    return [list(point) for point in ring.coords[:-1]]
