"""A data set in, its figures and ``results.json`` out."""

import contextlib
import dataclasses
import datetime
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from nerve_fast import datasets
from nerve_fast.datasets import Dataset
from nerve_fast.errors import InputError
from nerve_fast.evaluation import pictures, record
from nerve_fast.evaluation.folder import remove_made
from nerve_fast.evaluation.method import (
    dataset_asked_for,
    description,
    failure,
    load_segmenter,
    name_of,
    refuse_none,
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
from nerve_fast.evaluation.reading import read
from nerve_fast.evaluation.settings import EvaluationSettings
from nerve_fast.utils.lines import write_json
from nerve_fast.utils.locks import alone_in
from nerve_fast.utils.processes import process_group, wait
from nerve_fast.utils.provenance import commit

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EvaluationResults:
    """What an evaluation found.

    Attributes:
        folder: that holds it.
        figures: as in ``results.json``.
        pictures: the files that were drawn.
        failed: names of the images that could not be evaluated, of which the figures say nothing.
    """

    folder: Path
    figures: dict
    pictures: tuple[Path, ...] = ()
    failed: tuple[str, ...] = ()


def run(asked: EvaluationSettings, *, progress: bool = False) -> EvaluationResults | None:
    """Segment the images of a data set and say how right that is.

    Under ``accelerate launch`` each process takes its share of the images. What earlier processes
    of the same run have done is not done again as long as the image's files are what they were.
    An image that cannot be evaluated is logged as an error, and the others are evaluated all the
    same.

    Args:
        asked: what is done.
        progress: whether bars on stderr show how far it is.

    Returns:
        The figures over the images that could be evaluated, also written to ``results.json``; of
        several processes the first one returns them and the others ``None``.

    Raises:
        InputError: a setting is not usable, or no image can be evaluated.
    """
    dataset = dataset_asked_for(asked)
    settings = settings_asked_for(asked, dataset)
    classes = datasets.words(dataset, settings.vocabulary)
    usual = Path("evaluation", f"{dataset.name}-{asked.preset}-{settings.refiner}")
    folder = Path(asked.output or usual)
    samples = {name_of(dataset, sample): sample for sample in dataset.samples[: asked.limit]}
    count = len(classes)
    with (
        process_group(asked.models.device) as (index, processes, device),
        contextlib.ExitStack() as stack,
    ):
        made_with = description(asked, dataset, settings, classes, device)
        if index == 0:
            stack.enter_context(alone_in(folder))
            if asked.fresh:
                remove_made(folder)
        wait(processes)
        record.refuse_another(folder, made_with)
        known = record.done(folder, count)
        missing = [name for name in samples if name not in known]
        # Nobody adds an image before everybody has seen which ones are there.
        wait(processes)
        if missing or asked.draw:
            segmenter, weights = load_segmenter(asked, dataset, settings, device, progress=progress)
            made_with |= {"weights": weights, "commit": commit()}
        if index == 0:
            record.begin(folder, made_with, processes)
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
                disable=None if progress and index == 0 else True,
            ) as bar:
                for name in mine:
                    try:
                        image, truth = read(
                            dataset, samples[name], segmenter.words, segmenter.refiner
                        )
                        counts = compared(segmenter(image), truth, count)
                    except InputError as error:
                        failure(samples[name], error)
                        bar.update()
                        continue
                    record.add(folder, index, name, counts)
                    confusion += counts[0]
                    bar.set_postfix_str(f"mIoU {100 * mean_iou(confusion):.2f}", refresh=False)
                    bar.update()
            wait(processes)
        if index != 0:
            return None
        if not (missing or asked.draw):
            logger.warning("%s", nothing_done(folder))
        known = record.done(folder, count)
        evaluated = {name: sample for name, sample in samples.items() if name in known}
        failed = tuple(sample.name for name, sample in samples.items() if name not in known)
        refuse_none(len(evaluated), len(samples))
        figures = summary(folder, dataset, known, list(evaluated), len(failed))
        drawn = []
        if asked.draw:
            drawn = pictures.draw(
                folder, dataset, segmenter, known, evaluated, asked.draw, progress=progress
            )
        return EvaluationResults(folder, figures, tuple(drawn), failed)


def nothing_done(folder: Path) -> str:
    """Describe the models of a record that needed no further image, without loading them."""
    path = folder / "run.json"
    run = record.read_run(folder)
    begun = datetime.date.fromtimestamp(path.stat().st_mtime)
    return (
        f"no image was missing, so the models were not looked at again: these are the figures of a "
        f"run begun on {begun} at commit {run.get('commit')}"
    )


def compared(prediction: torch.Tensor, truth: torch.Tensor, classes: int) -> record.Counts:
    """Return the part of an image's result that a comparison keeps."""
    return (
        confusion_matrix(prediction, truth, classes, unlabelled=True),
        boundary_counts(prediction, truth, classes),
    )


def summary(
    folder: Path,
    dataset: Dataset,
    known: Mapping[str, record.Counts],
    names: Sequence[str],
    failed: int = 0,
) -> dict:
    """The figures over the images named, beside all that they depend on; also written to a file.

    Args:
        folder: of the run.
        dataset: that the images are of.
        known: of each image.
        names: of the images that the figures are over.
        failed: number of images that should be among them, and could not be evaluated.
    """
    run = record.read_run(folder)
    confusion, boundary = record.total(known, names, len(dataset.classes))
    figures = scores(confusion)
    mean_boundary, boundaries = boundary_iou(boundary)
    rows = zip(dataset.classes, figures.iou, figures.accuracies, boundaries, strict=True)
    results = {
        "images": len(names),
        "failed": failed,
        "complete": len(names) == len(dataset),
        "miou": figures.miou,
        "present_miou": figures.present_miou,
        "accuracy": figures.accuracy,
        "mean_accuracy": figures.mean_accuracy,
        "boundary_iou": mean_boundary,
        "classes": [
            {"name": name, "iou": iou, "accuracy": accuracy, "boundary_iou": edge}
            for name, iou, accuracy, edge in rows
        ],
        "run": {**run, "commit": " … ".join(dict.fromkeys((str(run.get("commit")), commit())))},
    }
    results = without_nan(results)
    write_json(folder / "results.json", results)
    return results
