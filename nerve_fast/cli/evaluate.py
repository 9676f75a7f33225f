"""The flags of ``evaluate``."""

from pathlib import Path

from nerve_fast.cli import flags
from nerve_fast.evaluation.presets import PRESETS, REFINERS


def add_evaluate(commands) -> None:
    command = commands.add_parser(
        "evaluate",
        help="segment a data set and say how right that is",
        description="Segments the images of a data set as a method's public code does, and writes "
        "mIoU, accuracies and Boundary IoU. The same command again goes on where a run stopped. "
        "Under `accelerate launch -m nerve_fast evaluate …` each process takes its share.",
    )
    command.set_defaults(run=_evaluate)
    add_dataset(command)
    command.add_argument(
        "--refiner",
        metavar="NAME",
        help=f"what improves the prior: {', '.join(REFINERS)} (default: the preset's)",
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="default: evaluation/DATASET-PRESET-REFINER",
    )
    command.add_argument(
        "--draw",
        type=int,
        default=0,
        metavar="N",
        help="also draw the N worst and the N best images, segmented once more for it",
    )
    command.add_argument(
        "--fresh", action="store_true", help="forget what an earlier run left in the folder"
    )
    add_changes(command)
    flags.add_models(command, resolution=False)
    flags.add_config(command)


def add_dataset(command) -> None:
    """Which images, and the settings of which method."""
    command.add_argument(
        "--dataset",
        required=True,
        metavar="NAME",
        help="voc21, voc20, pc60, pc59, coco-object, coco-stuff, ade20k, cityscapes, "
        "folder (images/, masks/, names.txt) or tiny",
    )
    command.add_argument("--root", type=Path, metavar="DIR", help="where the data set lies")
    command.add_argument(
        "--preset",
        default="fixed",
        metavar="NAME",
        help=f"settings of a method: {', '.join(PRESETS)} (default: %(default)s)",
    )
    command.add_argument("--limit", type=int, metavar="N", help="only the first N images")


def add_changes(command) -> None:
    """Settings in place of the preset's."""
    over = command.add_argument_group("in place of the preset's")
    over.add_argument("--prior", metavar="NAME", help="such as naclip")
    over.add_argument("--prior-resolution", type=int, help="short side for CLIP")
    over.add_argument("--prior-window", type=int, help="side of CLIP's sliding window")
    over.add_argument("--prior-stride", type=int, help="step of the window (default: half of it)")
    over.add_argument("--prior-proxy", metavar="ID|DIR", help="the DINO of proxyclip")
    over.add_argument("--logit-scale", type=float, help="of similarities, before the softmax")
    over.add_argument("--threshold", type=float, help="below it there is background")
    over.add_argument("--vocabulary", metavar="NAME", help="plain, sclip or clearclip")


def _evaluate(options) -> int:
    config = flags.config_of(options)
    # transformers and diffusers take seconds to import; mistakes above should not.
    from nerve_fast.evaluation.run import evaluate

    return evaluate(options, config)
