"""The command ``segment``: a label for every pixel of images and folders of images."""

from pathlib import Path

from nerve_fast.cli import flags


def add_segment(commands) -> None:
    command = commands.add_parser(
        "segment",
        help="label every pixel of images",
        description="Writes NAME.labels.png (palette image) and NAME.overlay.png for each image. "
        "Under `accelerate launch -m nerve_fast segment …` each process takes its share.",
    )
    command.set_defaults(run=_segment)
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE|FOLDER")
    command.add_argument(
        "--labels",
        required=True,
        help='classes, ";" between them, "," between synonyms: "cat; dog, puppy; grass"',
    )
    command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    command.add_argument("--save-heatmaps", action="store_true", help="also NAME.heatmaps.png")
    command.add_argument("--save-probabilities", action="store_true", help="also NAME.npz")
    command.add_argument("--save-steps", action="store_true", help="also NAME.steps.png")
    command.add_argument(
        "--resume", action="store_true", help="leave out images whose results are there"
    )
    command.add_argument(
        "--batch-size", type=int, default=1, help="images worked on together (default: 1)"
    )
    command.add_argument(
        "--verify", action="store_true", help="also run the reference, and say how far they differ"
    )

    flags.add_models(command)
    flags.add_large(command)
    flags.add_prior(command)
    flags.add_config(command)


def _segment(options) -> int:
    config = flags.config_of(options)
    # transformers and diffusers take seconds to import; mistakes above should not.
    from nerve_fast.pipeline.batch import segment

    return segment(options, config)
