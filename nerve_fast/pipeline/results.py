"""The files that a run writes for each image: which, whether they fit the memory, and how."""

import math
from collections.abc import Sequence
from pathlib import Path

from nerve_fast.errors import InputError
from nerve_fast.imaging import visualize
from nerve_fast.imaging.exports import EXPORTS, Labelled
from nerve_fast.imaging.exports.labelled import numbered
from nerve_fast.pipeline.asked import SegmentSettings
from nerve_fast.pipeline.budget import DoesNotFitError, drawing_memory
from nerve_fast.pipeline.inputs import ENDINGS
from nerve_fast.pipeline.marks import stamped
from nerve_fast.pipeline.output import SegmentationOutput
from nerve_fast.utils.files import written_whole
from nerve_fast.utils.provenance import file_digest
from nerve_fast.utils.units import format_bytes, parse_bytes


def wanted(asked: SegmentSettings) -> list[str]:
    """Return the endings of the results that were asked for."""
    optional = {
        "heatmaps.png": asked.save_heatmaps,
        "steps.png": asked.save_steps,
        "npz": asked.save_probabilities,
    }
    return [ending for ending in ENDINGS if optional.get(ending, True)]


def exported(asked: SegmentSettings) -> list[str]:
    """Return what the label map says of the exports that were asked for."""
    return [
        f"polygons within {asked.polygon_tolerance}" if name == "polygons" else name
        for name in asked.export
    ]


def check_drawing(asked: SegmentSettings, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise where results of images of these sizes cannot be drawn and written within the memory.

    Raises:
        DoesNotFitError: the message says what would help.
    """
    if asked.max_memory is None:
        return
    pixels = [width * height for width, height in sizes]
    size = sizes[pixels.index(max(pixels))]
    needed = drawing_memory(
        size,
        len(asked.labels),
        heat_maps=asked.save_heatmaps,
        steps=len(visualize.strip_stages(asked.taken_config.steps)) if asked.save_steps else 0,
        probabilities=asked.save_probabilities,
    )
    if asked.top is not None:
        needed += 4 * max(pixels)  # The label map with the numbers of all labels.
    if asked.export:
        needed += 16 * max(pixels)  # A mask, in two layouts, and its runs.
    # The label maps of the others.
    needed += 8 * (sum(pixels) - max(pixels))
    if needed > parse_bytes(asked.max_memory):
        raise DoesNotFitError(
            f"max_memory is {asked.max_memory}; drawing and writing the results of "
            f"{size[0]} × {size[1]} pixels takes up to {format_bytes(needed)}: give it more "
            "memory, or make the image smaller"
        )


def write(out: SegmentationOutput, stem: Path, asked: SegmentSettings, made: dict) -> None:
    """Write the pictures and the probabilities that were asked for; the label map last.

    Args:
        out: of an image.
        stem: of the files, the folder included.
        asked: says which files.
        made: what the label map says it was made of, see :mod:`nerve_fast.pipeline.marks`.
    """
    label_map, labels = out.label_map.numpy(), out.labels
    if asked.top is not None:
        # One numbering for all images, of which each has labels of its own.
        label_map, _ = numbered(label_map, labels, {}, asked.vocabulary)
        labels = asked.vocabulary
    pictures = {"overlay": visualize.overlay(out.image, label_map, labels)}
    if asked.save_heatmaps:
        pictures["heatmaps"] = visualize.heat_maps(out.image, out.walked.numpy(), out.labels)
    if asked.save_steps:
        steps = {count: maps.numpy() for count, maps in out.steps.items()}
        pictures["steps"] = visualize.steps_strip(out.image, out.prior.numpy(), steps, out.labels)
    last = Path(f"{stem}.labels.png")
    try:
        # What is there of an earlier run is no longer whole from here on.
        last.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{last}: cannot be replaced: {error.strerror or error}") from error
    for kind, picture in pictures.items():
        visualize.save_picture(picture, Path(f"{stem}.{kind}.png"))
    if asked.save_probabilities:
        out.save(Path(f"{stem}.npz"))
    results = {
        ending: file_digest(Path(f"{stem}.{ending}"))
        for ending in wanted(asked)
        if ending != "labels.png"
    }
    made = {**made, "results": results}
    if asked.export:
        each = zip(out.labels, out.confidences.tolist(), strict=True)
        made["confidences"] = {label: value for label, value in each if not math.isnan(value)}
        made["exports"] = export(out, stem, asked, made)
    with written_whole(last) as file:
        visualize.save_label_map(file, label_map, labels)
        file.write_bytes(stamped(file.read_bytes(), made))


def export(
    out: SegmentationOutput, stem: Path, asked: SegmentSettings, made: dict
) -> dict[str, dict[str, str]]:
    """Write an image's files of the exports that were asked for.

    Returns:
        By what :func:`exported` names, the digest of each file by its path in the folder.
    """
    labels = asked.vocabulary
    one = Labelled(
        made["image"],
        stem.name,
        *numbered(out.label_map.numpy(), out.labels, made["confidences"], labels),
        labels,
    )
    files = {}
    for name, kind in zip(asked.export, exported(asked), strict=True):
        write_image = EXPORTS[name].write_image
        paths = write_image(one, stem.parent, asked.polygon_tolerance) if write_image else []
        files[kind] = {
            path.relative_to(stem.parent).as_posix(): file_digest(path) for path in paths
        }
    return files
