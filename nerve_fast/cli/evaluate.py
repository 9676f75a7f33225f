"""The command ``evaluate``: a data set segmented, and how right that is."""

import sys
from pathlib import Path

from nerve_fast.cli import flags
from nerve_fast.cli.messages import notes
from nerve_fast.evaluation.presets import REFINERS


def add_evaluate(commands) -> None:
    """Add ``evaluate`` to the subparsers of the command line."""
    command = commands.add_parser(
        "evaluate",
        help="segment a data set and say how right that is",
        description="Segments the images of a data set as a method's public code does, and writes "
        "mIoU, accuracies and Boundary IoU. The same command again goes on where a run stopped. "
        "Under `accelerate launch -m nerve_fast evaluate …` each process takes its share.",
    )
    command.set_defaults(run=_run)
    flags.add_dataset(command)
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
    flags.add_changes(command)
    flags.add_models(command, resolution=False)
    flags.add_config(command)


def _run(options) -> int:
    config = flags.config_of(options)
    # transformers and diffusers take seconds to import; mistakes above should not.
    from nerve_fast import evaluation

    settings = evaluation.EvaluationSettings(
        **flags.method_of(options),
        config=config,
        refiner=options.refiner,
        draw=options.draw,
        fresh=options.fresh,
    )
    with notes():
        results = evaluation.run(settings, progress=True)
    if results is None:
        return 0
    print("\n".join(table(results.figures)))
    print(f"written to {results.folder / 'results.json'}")
    if results.pictures:
        print(f"pictures: {results.folder}/worst-*.png, best-*.png", file=sys.stderr)
    return 2 if results.failed else 0


def table(results: dict) -> list[str]:
    """The figures in %, a line a class, the means last."""

    def line(name, *values):
        cells = ("    –" if value is None else f"{100 * value:5.1f}" for value in values)
        return f"{name:24.24}" + "".join(f"{cell:>14}" for cell in cells)

    run, count = results["run"], results["images"]
    of = "" if results["complete"] else f" of {run['dataset']['images']}"
    failed = results["failed"]
    return [
        f"{run['dataset']['name']}, preset {run['preset']['name']}, {count}{of} images"
        + f", {failed} could not be evaluated" * (failed > 0),
        f"note: {run['preset']['note']}",
        f"{'':24}{'IoU':>14}{'accuracy':>14}{'boundary IoU':>14}",
        *(
            line(row["name"], row["iou"], row["accuracy"], row["boundary_iou"])
            for row in results["classes"]
        ),
        line("mean", results["miou"], results["mean_accuracy"], results["boundary_iou"]),
        f"mIoU {_percent(results['miou'])}, aAcc {_percent(results['accuracy'])}, "
        f"mAcc {_percent(results['mean_accuracy'])}, Boundary IoU "
        f"{_percent(results['boundary_iou'])}",
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
