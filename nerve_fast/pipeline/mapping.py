"""Label a georeferenced raster window by window: the work behind ``map``.

Each window is a call of the pipeline with a graph and a walk of its own. Windows overlap, and there
probabilities on tokens fade from one into the other, before they come to pixels.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tqdm import tqdm

from nerve_fast.clusters import ClusterError
from nerve_fast.errors import InputError, SettingError
from nerve_fast.imaging import rasters
from nerve_fast.imaging.mosaic import Mosaic
from nerve_fast.imaging.rasters import outlines, reading, writing
from nerve_fast.imaging.tiling import Tiling
from nerve_fast.pipeline.batch import load_pipeline
from nerve_fast.pipeline.map_plan import COLUMNS, ROWS, MapPlan, planned
from nerve_fast.pipeline.map_settings import MapSettings
from nerve_fast.pipeline.output import SegmentationOutput
from nerve_fast.pipeline.pipeline import NervePipeline
from nerve_fast.utils.files import prepare_folder, shown, written_whole
from nerve_fast.utils.labels import parse_labels


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
