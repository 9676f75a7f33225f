"""The command ``segment``: a label for every pixel of images and folders of images."""

import sys
from pathlib import Path

from nerve_fast.cli import flags
from nerve_fast.cli.labels import add_labels, add_threshold, labels_of, threshold_of
from nerve_fast.cli.messages import notes
from nerve_fast.cli.seeds import add_seeds, places, points_by_image
from nerve_fast.config import default_config
from nerve_fast.errors import InputError
from nerve_fast.imaging.exports import EXPORTS
from nerve_fast.imaging.images import is_video
from nerve_fast.utils.labels import parse_labels

PASSED_ON = (
    "images",
    "output",
    "save_heatmaps",
    "save_probabilities",
    "save_steps",
    "export",
    "polygon_tolerance",
    "resume",
    "batch_size",
    "verify",
    "resolution",
    "max_pixels",
    "max_memory",
    "global_keys",
    "max_key_error",
    "tile",
    "overlap",
    "share_images",
    "frames_in_graph",
    "top",
    "background",
)
"""Flags that are settings of the same name."""


def add_segment(commands) -> None:
    """Add ``segment`` to the subparsers of the command line."""
    command = commands.add_parser(
        "segment",
        help="label every pixel of images, or of a video",
        description="Writes NAME.labels.png (palette image) and NAME.overlay.png for each image, "
        "NAME.labels.npz, NAME.overlay.mp4 and NAME.legend.png for each video. "
        "Under `accelerate launch -m nerve_fast segment …` each process takes its share of them.",
    )
    command.set_defaults(run=_run)
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE|FOLDER|VIDEO")
    add_labels(command)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    command.add_argument("--save-heatmaps", action="store_true", help="also NAME.heatmaps.png")
    command.add_argument("--save-probabilities", action="store_true", help="also NAME.npz")
    command.add_argument("--save-steps", action="store_true", help="also NAME.steps.png")
    command.add_argument(
        "--export",
        nargs="+",
        default=[],
        metavar="FORMAT",
        help="also " + "; ".join(f"{name}: {one.about}" for name, one in EXPORTS.items()),
    )
    command.add_argument(
        "--polygon-tolerance",
        type=float,
        default=1.0,
        metavar="PIXELS",
        help="how far exported outlines may be from the edges of pixels (default: 1)",
    )
    command.add_argument(
        "--resume", action="store_true", help="leave out images whose results are there"
    )
    command.add_argument(
        "--batch-size", type=int, default=1, help="images worked on together (default: 1)"
    )
    command.add_argument(
        "--verify", action="store_true", help="also run the reference, and say how far they differ"
    )
    command.add_argument(
        "--share-images",
        action="store_true",
        help="processes share each image, its tiles and its walk, not the list of images",
    )
    command.add_argument(
        "--frames-in-graph",
        type=int,
        default=2,
        metavar="N",
        help="of a video: how many frames before each take part in its walk, so that labels hold "
        "still; 0 takes each by itself (default: 2)",
    )
    add_threshold(command)
    add_seeds(command)
    flags.add_models(command)
    flags.add_large(command)
    flags.add_max_pixels(command)
    flags.add_prior(command)
    flags.add_config(command, leave_out=("global_keys",), seeds=True)


def _run(options) -> int:
    labels = labels_of(options.labels)
    points, boxes = places("--points", options.points, 2), places("--boxes", options.boxes, 4)
    if not (labels or points or boxes or options.points_file or options.scribbles):
        raise InputError(
            "nothing says what to look for; pass --labels, or --points, --points-file, --boxes or "
            "--scribbles"
        )
    config = flags.config_of(
        options, leave_out=("global_keys",), defaults=default_config(bool(labels))
    )
    if len(labels) == 1 and len(parse_labels(labels)[0]) > 1:
        print(
            'note: commas separate synonyms of one class; between classes put ";"', file=sys.stderr
        )
    # transformers and diffusers take seconds to import; mistakes above should not.
    from nerve_fast.pipeline.asked import SegmentSettings
    from nerve_fast.pipeline.batch import segment
    from nerve_fast.pipeline.seeding import SeedSettings
    from nerve_fast.pipeline.video_files import segment_videos

    settings = SegmentSettings(
        **{name: getattr(options, name) for name in PASSED_ON},
        labels=labels,
        threshold=threshold_of(options.threshold),
        seeds=SeedSettings(
            points=points,
            boxes=boxes,
            points_by_image=points_by_image(options.points_file),
            scribbles=options.scribbles,
            scribble_labels=[
                name.strip() for name in (options.scribble_labels or "").split(";") if name.strip()
            ],
            max_pixels=options.max_pixels,
        ),
        prior=flags.prior_of(options),
        config=config,
        models=flags.models_of(options),
    )
    films = [path for path in options.images if is_video(path)]
    if films and len(films) < len(options.images):
        raise InputError(
            f"images and videos ({films[0]}) are given together; run the command once for each kind"
        )
    with notes():
        if films:
            results = segment_videos(settings, progress=True)
        else:
            results = segment(settings, say=print, progress=True)
    if results.written or results.known:
        kind, counts = "video" if films else "image", (results.written, results.known)
        print(_summary(kind, *counts, len(results.failed), options.output))
    return 2 if results.failed else 0


def _summary(kind: str, written: int, known: int, failed: int, folder: Path) -> str:
    said = f"{written} {kind}{'s' * (written != 1)} written to {folder}"
    said += f", {known} there already" * (known > 0)
    return said + f", {failed} could not be done" * (failed > 0)
