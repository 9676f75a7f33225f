"""The command ``evaluate``: a data set in, a table and ``results.json`` out."""

import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from nerve_fast import datasets
from nerve_fast.config import NerveConfig
from nerve_fast.datasets import Dataset
from nerve_fast.errors import InputError
from nerve_fast.evaluation import pictures, record
from nerve_fast.evaluation.method import (
    description,
    load_segmenter,
    name_of,
    settings_asked_for,
)
from nerve_fast.evaluation.metrics import (
    boundary_counts,
    boundary_iou,
    confusion_matrix,
    mean_iou,
    scores,
    without_nan,
)
from nerve_fast.utils.files import written_whole
from nerve_fast.utils.processes import notes, process_group, wait
from nerve_fast.utils.provenance import commit


def evaluate(options, config: NerveConfig) -> int:
    """Segment a data set's images and say how right that is.

    Under ``accelerate launch`` each process takes its share of the images. What earlier processes
    of the same run have done is not done again as long as the image's files are what they were.

    Args:
        options: the flags of the command line.
        config: of the walk.

    Returns:
        The exit code, 0.

    Raises:
        InputError: a mistake, or an image or mask that cannot be read.
    """
    for flag, least in (("limit", 1), ("draw", 0)):
        value = getattr(options, flag)
        if value is not None and value < least:
            raise InputError(f"--{flag} is {value}; expected {least} or more")
    dataset = datasets.load(options.dataset, options.root)
    settings = settings_asked_for(options, dataset)
    classes = datasets.words(dataset, settings.vocabulary)
    folder = options.output or Path(
        "evaluation", f"{dataset.name}-{options.preset}-{settings.refiner}"
    )
    samples = {name_of(dataset, sample): sample for sample in dataset.samples[: options.limit]}
    count = len(classes)
    with process_group(options.device) as (index, processes, device), notes():
        run = description(options, config, dataset, settings, classes, device)
        if index == 0 and options.fresh:
            record.forget(folder)
            pictures.forget(folder)
        wait(processes)
        record.refuse_another(folder, run)
        known = record.done(folder, count)
        missing = [name for name in samples if name not in known]
        # Nobody adds an image before everybody has seen which ones are there.
        wait(processes)
        if missing or options.draw:
            segmenter, weights = load_segmenter(options, config, dataset, settings, device)
            run |= {"weights": weights, "commit": commit()}
        if index == 0:
            record.begin(folder, run)
        wait(processes)
        if missing:
            done = [name for name in samples if name in known]
            confusion, _ = record.total(known, done, count)
            mine = missing[index::processes]
            total = len(done) + len(mine)
            with tqdm(
                desc="images",
                unit="image",
                total=total,
                initial=len(done),
                disable=None if index == 0 else True,
            ) as bar:
                for name in mine:
                    image, truth = dataset.read(samples[name])
                    counts = compared(segmenter(image), truth, count)
                    record.add(folder, index, name, counts)
                    confusion += counts[0]
                    bar.set_postfix_str(f"mIoU {100 * mean_iou(confusion):.2f}", refresh=False)
                    bar.update()
            wait(processes)
        if index == 0:
            if not (missing or options.draw):
                print(f"note: {nothing_done(folder)}", file=sys.stderr)
            known = record.done(folder, count)
            results = summary(folder, dataset, known, list(samples))
            print("\n".join(table(results)))
            print(f"written to {folder / 'results.json'}")
            if options.draw:
                pictures.draw(folder, dataset, segmenter, known, samples, options.draw)
    return 0


def nothing_done(folder: Path) -> str:
    """Whose the figures are where all images were there, and no model was loaded."""
    path = folder / "run.json"
    run = json.loads(path.read_text(encoding="utf-8"))
    begun = datetime.date.fromtimestamp(path.stat().st_mtime)
    return (
        f"no image was missing, so the models were not looked at again: these are the figures of a "
        f"run begun on {begun} at commit {run['commit']}"
    )


def compared(prediction: torch.Tensor, truth: torch.Tensor, classes: int) -> record.Counts:
    """What is kept of an image."""
    return (
        confusion_matrix(prediction, truth, classes, unlabelled=True),
        boundary_counts(prediction, truth, classes),
    )


def summary(
    folder: Path, dataset: Dataset, known: Mapping[str, record.Counts], names: Sequence[str]
) -> dict:
    """The figures over the images named, beside all that they depend on; also written to a file."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    confusion, boundary = record.total(known, names, len(dataset.classes))
    figures = scores(confusion)
    mean_boundary, boundaries = boundary_iou(boundary)
    rows = zip(dataset.classes, figures.iou, figures.accuracies, boundaries, strict=True)
    results = {
        "images": len(names),
        "complete": len(names) == len(dataset),
        "miou": figures.miou,
        "accuracy": figures.accuracy,
        "mean_accuracy": figures.mean_accuracy,
        "boundary_iou": mean_boundary,
        "classes": [
            {"name": name, "iou": iou, "accuracy": accuracy, "boundary_iou": edge}
            for name, iou, accuracy, edge in rows
        ],
        "run": {**run, "commit": " … ".join(dict.fromkeys((run["commit"], commit())))},
    }
    results = without_nan(results)
    with written_whole(folder / "results.json") as path:
        path.write_text(json.dumps(results, indent=2, ensure_ascii=False), encoding="utf-8")
    return results


def table(results: Mapping) -> list[str]:
    """The figures in %, a line a class, the means last."""

    def line(name, *values):
        cells = ("    –" if value is None else f"{100 * value:5.1f}" for value in values)
        return f"{name:24.24}" + "".join(f"{cell:>14}" for cell in cells)

    run, count = results["run"], results["images"]
    of = "" if results["complete"] else f" of {run['dataset']['images']}"
    return [
        f"{run['dataset']['name']}, preset {run['preset']['name']}, {count}{of} images",
        f"note: {run['preset']['note']}",
        f"{'':24}{'IoU':>14}{'accuracy':>14}{'boundary IoU':>14}",
        *(
            line(row["name"], row["iou"], row["accuracy"], row["boundary_iou"])
            for row in results["classes"]
        ),
        line("mean", results["miou"], results["mean_accuracy"], results["boundary_iou"]),
        f"mIoU {percent(results['miou'])}, aAcc {percent(results['accuracy'])}, "
        f"mAcc {percent(results['mean_accuracy'])}, Boundary IoU "
        f"{percent(results['boundary_iou'])}",
    ]


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
