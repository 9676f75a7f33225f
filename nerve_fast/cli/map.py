"""The command ``map``: a label for every pixel of a GeoTIFF, with its coordinates."""

from pathlib import Path

from nerve_fast.cli import flags
from nerve_fast.cli.labels import add_labels, add_threshold, labels_of, threshold_of
from nerve_fast.cli.messages import notes
from nerve_fast.errors import InputError

PASSED_ON = (
    "raster",
    "output",
    "polygons",
    "bands",
    "percentiles",
    "scale",
    "window",
    "window_overlap",
    "max_memory",
    "global_keys",
    "max_key_error",
    "tile",
    "overlap",
    "top",
    "background",
)
"""Flags that are settings of the same name."""


def add_map(commands) -> None:
    """Add ``map`` to the subparsers of the command line."""
    command = commands.add_parser(
        "map",
        help="label every pixel of a GeoTIFF, larger than memory",
        description="Reads a GeoTIFF by windows and writes a GeoTIFF of labels on the same grid, "
        "with its coordinates, colours and class names.",
    )
    command.set_defaults(run=_run)
    command.add_argument("raster", type=Path, metavar="SCENE.tif")
    add_labels(command)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="LABELS.tif")
    command.add_argument(
        "--polygons",
        type=Path,
        metavar="FILE",
        help="also the outlines, .gpkg or .geojson, in the coordinates of the raster",
    )
    command.add_argument(
        "--bands",
        type=_integers,
        metavar="R,G,B",
        help="numbers of the bands, from 1, or of one (default: those that the file names so, else "
        "the first three)",
    )
    command.add_argument(
        "--percentiles",
        type=_numbers,
        metavar="LOW,HIGH",
        help="of a band's values, black and white (default: 2,98; bands of 8 bits as they are)",
    )
    command.add_argument(
        "--scale",
        type=int,
        default=1,
        metavar="N",
        help="the networks see N × N pixels as one, read from overviews where there are (default: "
        "1)",
    )
    command.add_argument(
        "--window",
        type=int,
        metavar="PIXELS",
        help="side of the windows that are segmented one by one, at the scale (default: 256 tokens "
        "or what the memory holds)",
    )
    command.add_argument(
        "--window-overlap",
        type=int,
        metavar="PIXELS",
        help="of windows, at the scale (default: 32 tokens, a quarter of a window at most)",
    )
    add_threshold(command)
    flags.add_models(command, resolution=False)
    flags.add_large(command)
    flags.add_prior(command)
    flags.add_config(command, leave_out=("global_keys",))


def _run(options) -> int:
    labels = labels_of(options.labels)
    if not labels:
        raise InputError("nothing says what to look for; pass --labels")
    config = flags.config_of(options, leave_out=("global_keys",))
    # transformers and diffusers take seconds to import; mistakes above should not.
    from nerve_fast.pipeline.map_settings import MapSettings
    from nerve_fast.pipeline.mapping import label_raster

    settings = MapSettings(
        **{name: getattr(options, name) for name in PASSED_ON},
        labels=labels,
        threshold=threshold_of(options.threshold),
        prior=flags.prior_of(options),
        config=config,
        models=flags.models_of(options),
    )
    # Of each window another one; the largest is said at the end.
    with notes(leave_out="keys of "):
        result = label_raster(settings, progress=True)
    print(_summary(result, options))
    if result.key_error is not None:
        print(f"keys in clusters, the window that is farthest off: {result.key_error}")
    return 0


def _summary(result, options) -> str:
    height, width = result.size
    windows, (down, across) = len(result.tiling), result.tiling.tile
    said = f"{options.output}: {width} × {height} pixels, in {windows} window{'s' * (windows != 1)}"
    said += f" of {across} × {down}"
    said += f", {result.empty} of them without data" * (result.empty > 0)
    if result.polygons is not None:
        said += f"; {options.polygons}: {result.polygons} polygons"
    return said


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


# In argparse's messages: "invalid whole numbers with commas value".
_integers.__name__ = "whole numbers with commas"
_numbers.__name__ = "numbers with commas"
