"""Label a georeferenced raster window by window: the work behind ``map``.

Each window is a call of the pipeline with a graph and a walk of its own. Windows overlap, and there
probabilities on tokens fade from one into the other, before they come to pixels.
"""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tqdm import tqdm

from nerve_fast.clusters import ClusterError
from nerve_fast.dispatch.machine import free_memory
from nerve_fast.errors import InputError, SettingError
from nerve_fast.imaging import rasters
from nerve_fast.imaging.mosaic import Mosaic
from nerve_fast.imaging.rasters import outlines, reading, writing
from nerve_fast.imaging.tiling import Tiling
from nerve_fast.pipeline.batch import load_pipeline
from nerve_fast.pipeline.budget import FREE_SHARE, DoesNotFitError, Request
from nerve_fast.pipeline.map_settings import MapSettings
from nerve_fast.pipeline.output import SegmentationOutput
from nerve_fast.pipeline.pipeline import NervePipeline
from nerve_fast.utils.files import prepare_folder, shown, written_whole
from nerve_fast.utils.labels import parse_labels
from nerve_fast.utils.units import format_bytes, parse_bytes

WINDOW_TOKENS = 256
"""Along a side of a window, where it is not named: keys of more take longer by the pixel."""

LEAST_TOKENS = 32
"""Along a side of the smallest window that is taken where memory is short."""

ROWS, COLUMNS = 2 * writing.BLOCK, 16 * writing.BLOCK
"""Of the blocks that come to pixels and are written, whole tiles of the file."""


@dataclasses.dataclass(frozen=True)
class MapResult:
    """What was written.

    Attributes:
        size: ``(height, width)`` of the raster.
        tiling: the windows, in pixels of the scale, on a plane as large as the networks need.
        empty: how many of them have no data, and were not segmented.
        polygons: how many were written; ``None`` where none were asked for.
        key_error: of the window whose clusters of keys were farthest off; ``None`` without
            clusters.
    """

    size: tuple[int, int]
    tiling: Tiling
    empty: int
    polygons: int | None
    key_error: ClusterError | None


def label_raster(
    asked: MapSettings, pipe: NervePipeline | None = None, *, progress: bool = False
) -> MapResult:
    """Label a raster, and write the labels and, where asked for, their polygons.

    All files are written whole or not at all. Neither the raster nor its labels are in memory as a
    whole; polygons are.

    Args:
        asked: what is done.
        pipe: the networks; ``None`` loads those of ``asked.models``.
        progress: whether a bar on stderr shows how far it is.

    Raises:
        InputError: the raster cannot be read or has no coordinates, a result cannot be written, a
            file of its name is there that was not made here, or the memory is too small.
    """
    rasters.need("rasterio")
    output = Path(asked.output)
    _check_places(asked)
    with reading.opened(
        asked.raster,
        bands=asked.bands,
        percentiles=cast("tuple[float, float] | None", asked.percentiles),
        scale=asked.scale,
    ) as raster:
        for place in {Path(path).parent for path in (output, asked.polygons) if path is not None}:
            prepare_folder(place)
        if pipe is None:
            pipe = load_pipeline(asked, asked.models.device)
        if pipe.prior is None:
            raise InputError("pipe has no prior to find labels with; load it with a CLIP")
        pipe.prior.check_labels(parse_labels(list(asked.labels)), progress=progress)
        plan = planned(pipe, raster, asked)
        with contextlib.ExitStack() as files:
            names = files.enter_context(written_whole(writing.names_file(output)))
            names.write_text(writing.category_names(asked.labels), encoding="utf-8")
            drawn = None
            if asked.polygons is not None:
                drawn = files.enter_context(written_whole(asked.polygons))
            written = files.enter_context(written_whole(output))
            with writing.label_raster(
                written, output, raster, asked.labels, _tags(raster, asked)
            ) as labelled:
                empty, errors = _fill(pipe, raster, asked, plan, labelled, progress)
            count = None
            if drawn is not None:
                count = outlines.write_outlines(
                    written, drawn, Path(cast(Path, asked.polygons)), asked.labels
                )
        return MapResult(
            size=raster.size,
            tiling=plan.tiling,
            empty=empty,
            polygons=count,
            key_error=max(errors, key=lambda error: error.relative, default=None),
        )


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
        overlap = side // 8 if asked.window_overlap is None else asked.window_overlap
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
    return 2 * reading.CACHE_BYTES + sums + window + block


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


def _fill(
    pipe: NervePipeline,
    raster: reading.Raster,
    asked: MapSettings,
    plan: MapPlan,
    labelled: writing.LabelRaster,
    progress: bool,
) -> tuple[int, list[ClusterError]]:
    """Segment the windows, and write each row of blocks as soon as all its windows are there.

    Returns:
        The number of windows without data, and how far clusters of keys were off.
    """
    tiling = plan.tiling
    tokens = tiling.in_units(pipe.graph.unit)
    down, across = tokens.weights()
    mosaic = Mosaic(len(asked.labels), tokens.size)
    write = functools.partial(_write, mosaic, raster, asked, pipe.graph.unit * raster.scale)
    row, empty, errors = 0, 0, []
    hidden = None if progress else True
    with tqdm(total=len(tiling), desc="windows", unit="window", disable=hidden) as bar:
        for i, top in enumerate(tiling.tops):
            for j, left in enumerate(tiling.lefts):
                image, valid = raster.read((top, left), tiling.tile)
                if valid.any():
                    out = _segmented(pipe, image, asked, plan)
                    mosaic.add(
                        (tokens.tops[i], tokens.lefts[j]),
                        _of_all(out, asked),
                        down[i][:, None] * across[j],
                    )
                    if out.plan.cluster_error is not None:
                        errors.append(out.plan.cluster_error)
                else:
                    empty += 1
                bar.update()
            last = i + 1 == len(tiling.tops)
            row = write(row, tokens.size[0] if last else tokens.tops[i + 1], labelled)
    if empty == len(tiling):
        raise InputError(f"{shown(raster.path)}: holds no data in the bands {raster.bands}")
    return empty, errors


def _segmented(
    pipe: NervePipeline, image: np.ndarray, asked: MapSettings, plan: MapPlan
) -> SegmentationOutput:
    found = pipe(
        image,
        list(asked.labels),
        config=asked.config,
        processing_resolution=0,
        generator=torch.Generator().manual_seed(asked.models.seed),
        max_memory=plan.max_memory,
        global_keys=asked.global_keys,
        max_key_error=asked.max_key_error,
        tile=asked.tile,
        overlap=asked.overlap,
        top=asked.top,
        threshold=asked.threshold,
        background=asked.background,
    )
    return cast(SegmentationOutput, found)


def _of_all(out: SegmentationOutput, asked: MapSettings) -> torch.Tensor:
    """The probabilities of all labels, of which a window may have taken the likeliest alone."""
    if out.labels == asked.labels:
        return out.walked
    maps = torch.zeros(len(asked.labels), *out.walked.shape[1:])
    maps[[asked.labels.index(label) for label in out.labels]] = out.walked
    return maps


def _write(
    mosaic: Mosaic,
    raster: reading.Raster,
    asked: MapSettings,
    pixels: int,
    row: int,
    there: int,
    labelled: writing.LabelRaster,
) -> int:
    """Write the blocks, from a row of pixels on, whose tokens are there; returns the next row."""
    certainty = asked.certainty
    least, instead = certainty.least(asked.labels), certainty.instead(asked.labels)
    height, width = raster.size
    while row < height:
        end = min(row + ROWS, height)
        if mosaic.needed(end, pixels) > there:
            break
        for corner, size in _blocks(row, end, width):
            found = mosaic.labels(corner, size, pixels, least, instead).numpy()
            valid = raster.valid(corner, size)
            labelled.write(corner, found if valid is None else np.where(valid, found, -1))
        row = end
        mosaic.drop(row, pixels)
    return row


def _blocks(row: int, end: int, width: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for left in range(0, width, COLUMNS):
        yield (row, left), (end - row, min(COLUMNS, width - left))


def _tags(raster: reading.Raster, asked: MapSettings) -> dict[str, str]:
    """What the file says of how it was made."""
    said = {"source": raster.path.name, "bands": ",".join(map(str, raster.bands))}
    if raster.stretches is not None:
        said["black_and_white"] = "; ".join(f"{one.low:g},{one.high:g}" for one in raster.stretches)
    return {**said, "scale": str(raster.scale), "config": json.dumps(asked.config.to_dict())}


def _check_places(asked: MapSettings) -> None:
    """Refuse places where files of others are, before anything is made."""
    output = Path(asked.output)
    if output.exists() and Path(asked.raster).exists() and output.samefile(asked.raster):
        raise SettingError("raster and {output} are both {0}; name another place", shown(output))
    writing.refuse_foreign_raster(output)
    writing.refuse_foreign_names(writing.names_file(output))
    if asked.polygons is not None:
        outlines.check_outlines(Path(asked.polygons))
