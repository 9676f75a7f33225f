"""How a raster is cut into windows whose calls fit the memory."""

import dataclasses
import math

from nerve_fast.dispatch.machine import free_memory
from nerve_fast.errors import InputError, SettingError
from nerve_fast.imaging.rasters import gdal, reading, writing
from nerve_fast.imaging.tiling import Tiling
from nerve_fast.pipeline.budget import FREE_SHARE, DoesNotFitError, Request
from nerve_fast.pipeline.map_settings import MapSettings
from nerve_fast.pipeline.pipeline import NervePipeline
from nerve_fast.utils.labels import parse_labels
from nerve_fast.utils.units import format_bytes, parse_bytes

WINDOW_TOKENS = 256
"""Along a side of a window, where it is not named: keys of more take longer by the pixel."""

OVERLAP_TOKENS = 32
"""By which windows overlap, and a quarter of a window at most: ``examples/maps/seams.py`` finds no
more labels changed at such seams than elsewhere, and more at those of half of it."""

LEAST_TOKENS = 32
"""Along a side of the smallest window that is taken where memory is short."""

ROWS, COLUMNS = 2 * writing.BLOCK, 16 * writing.BLOCK
"""Of the blocks that come to pixels and are written, whole tiles of the file."""


@dataclasses.dataclass(frozen=True)
class MapPlan:
    """How a raster is cut up.

    Attributes:
        tiling: windows in pixels of the scale, on a plane that is as large as the networks need.
        max_memory: bytes for a call on a window.
    """

    tiling: Tiling
    max_memory: int


def planned(pipe: NervePipeline, raster: reading.Raster, asked: MapSettings) -> MapPlan:
    """The largest windows that fit the memory, up to those asked for.

    Raises:
        InputError: not even the smallest windows fit, or those that were asked for do not.
        SettingError: windows overlap by more than half.
    """
    graph = pipe.graph
    if asked.max_memory is not None:
        budget = parse_bytes(asked.max_memory)
    else:
        budget = int(FREE_SHARE * free_memory(graph.device))
    height, width = (math.ceil(side / graph.multiple) * graph.multiple for side in raster.seen)
    # Twice: the last window has more in it than what makes the plane larger than the raster.
    least = 2 * graph.multiple
    if asked.window is not None and asked.window < least:
        raise SettingError("{window} is {0}; expected {1} or more", asked.window, least)
    side = asked.window or max(WINDOW_TOKENS * graph.unit, graph.multiple)
    while True:
        overlap = asked.window_overlap
        if overlap is None:
            overlap = min(OVERLAP_TOKENS * graph.unit, side // 4)
        if 2 * overlap > side // graph.multiple * graph.multiple:
            raise SettingError(
                "{window_overlap} is {0} and a window {1}; expected at most half a window",
                overlap,
                side,
            )
        tiling = Tiling.of((height, width), side, overlap, graph.multiple)
        left = budget - _held(tiling, graph.unit, asked)
        if left > 0 and _fits(pipe, asked, tiling, left):
            return MapPlan(tiling, left)
        smaller = side // 2
        if asked.window is not None or smaller < LEAST_TOKENS * graph.unit:
            raise InputError(
                f"{format_bytes(budget)} of memory beyond the models do not hold windows of "
                f"{side} pixels with {len(asked.labels)} labels; give it more, or fewer labels"
            )
        side = smaller


def _held(tiling: Tiling, unit: int, asked: MapSettings) -> int:
    """Bytes that are taken beside the call on a window."""
    # Sums of a row of windows and of what the next blocks need, and a copy while they grow.
    rows = 2 * tiling.tile[0] // unit + ROWS // unit
    sums = 2 * 4 * (len(asked.labels) + 1) * rows * (tiling.size[1] // unit)
    # A window's bands as they are, in float64, as 8 bits and as an image.
    window = 64 * math.prod(tiling.tile)
    # A block's labels, those of the tokens around it, and what is written of it.
    around = 3 * unit * asked.scale
    block = 16 * (ROWS + around) * (COLUMNS + around) + 16 * ROWS * COLUMNS
    return 2 * gdal.CACHE_BYTES + sums + window + block


def _fits(pipe: NervePipeline, asked: MapSettings, tiling: Tiling, memory: int) -> bool:
    """Whether the call on a window can be planned within the memory."""
    count = len(asked.labels)
    if asked.top is not None:
        count = min(asked.top + (asked.background is not None), count)
    request = Request(
        prior=pipe.prior,
        source=pipe.graph,
        backend=pipe.backend,
        images=1,
        image_size=(tiling.tile[1], tiling.tile[0]),
        words=sum(map(len, parse_labels(list(asked.labels)))),
        labels=count,
        config=asked.config,
        processing_resolution=0,
        tile=asked.tile,
        overlap=asked.overlap,
        global_keys=asked.global_keys,
    )
    try:
        request.planned(memory)
    except DoesNotFitError:
        return False
    return True
