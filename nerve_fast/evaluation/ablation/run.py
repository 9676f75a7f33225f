"""Ablations: the features of each image once, then each setting only walks.

The folder holds ``features/``, what was computed of each image, and ``counts.jsonl``, what each
setting made of it; what is there of earlier runs, of other ablations too, is not done again as long
as the files of the image, the models and the packages are what they were.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from tqdm import tqdm

from nerve_fast import datasets
from nerve_fast.backbones.source import AffinitySource, GraphFeatures
from nerve_fast.datasets import Dataset, Sample
from nerve_fast.errors import InputError
from nerve_fast.evaluation.ablation.ablations import ABLATIONS, Setting
from nerve_fast.evaluation.ablation.counts import Counts
from nerve_fast.evaluation.ablation.features import FeatureCache, Features, Source
from nerve_fast.evaluation.ablation.rows import rows
from nerve_fast.evaluation.folder import claim
from nerve_fast.evaluation.method import (
    dataset_asked_for,
    description,
    failure,
    load_segmenter,
    name_of,
    refuse_none,
    settings_asked_for,
)
from nerve_fast.evaluation.metrics import confusion_matrix, without_nan
from nerve_fast.evaluation.presets import Settings
from nerve_fast.evaluation.reading import read
from nerve_fast.evaluation.rules import thresholded
from nerve_fast.evaluation.segmenter import rule_of
from nerve_fast.evaluation.settings import AblationSettings
from nerve_fast.pipeline.loading import device_and_dtype
from nerve_fast.pipeline.stages import walk
from nerve_fast.utils.files import prepare_folder
from nerve_fast.utils.lines import write_json
from nerve_fast.utils.locks import alone_in
from nerve_fast.utils.processes import process_count
from nerve_fast.utils.provenance import commit, digest
from nerve_fast.utils.text import plain
from nerve_fast.utils.units import parse_bytes


@dataclasses.dataclass(frozen=True)
class AblationResults:
    """The results of ablations.

    Attributes:
        folder: that holds it.
        figures: as in ``results.json``, but for ``nan`` where that has ``null``. Its ``failed`` is
            the number of images that could not be evaluated, of which the figures say nothing.
    """

    folder: Path
    figures: dict


def ablate(asked: AblationSettings, *, progress: bool = False) -> AblationResults:
    """Run ablations and write their tables and plots.

    An image that cannot be evaluated is logged as an error, and the others are evaluated all the
    same.

    Args:
        asked: what is done; ``asked.config`` is of the walk that others are compared with.
        progress: whether bars on stderr show how far it is.

    Raises:
        InputError: a setting is not usable, no image can be evaluated, or a folder cannot be
            written; or there are several processes, or no matplotlib.
    """
    if process_count("WORLD_SIZE") != 1:
        raise InputError(
            f"the environment says WORLD_SIZE={os.environ['WORLD_SIZE']}; expected 1, as ablate "
            "runs in one process: start it without accelerate launch or torchrun"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plots are drawn with matplotlib: pip install 'nerve-fast[bench]'")
    dataset = dataset_asked_for(asked)
    settings = settings_asked_for(asked, dataset)
    if settings.score is not None or settings.rule != "threshold":
        raise InputError(
            f"the preset {asked.preset} labels pixels by a score of each class, which needs more "
            "than the walk's result; take one with a threshold, such as nerve or fixed"
        )
    classes = datasets.words(dataset, settings.vocabulary)
    folder = Path(asked.output or Path("ablations", f"{dataset.name}-{asked.preset}"))
    document = Path(asked.document) if asked.document else None
    # It imports matplotlib, which is looked for above.
    from nerve_fast.evaluation.ablation.page import refuse_foreign_page, write_page

    if document:
        refuse_foreign_page(asked.names, document, document.parent / "plots", "ablation-")
        prepare_folder(document.parent)
    samples = dataset.samples[: asked.limit]
    device, _ = device_and_dtype(asked.models.device, None)
    run = description(asked, dataset, settings, classes, device)
    with alone_in(folder):
        plots = [f"{name}.png" for name in asked.names]
        claim(folder, ["counts.jsonl", "results.json", "table.md", *plots])
        segmenter, weights = load_segmenter(asked, dataset, settings, device, progress=progress)
        source = Source(
            segmenter.prior,
            cast(AffinitySource, segmenter.graph),
            classes,
            run["versions"],
            asked.models.backend,
            asked.models.seed,
        )
        cache = FeatureCache(folder / "features", parse_bytes(asked.cache_size))
        base = Setting(asked.config, asked.models.timestep)
        ablations, evaluated = measured(
            asked.names, dataset, samples, source, settings, base, cache, progress=progress
        )
        figures = {
            "command": asked.command or f"nerve_fast.evaluation.ablate({asked})",
            "images": evaluated,
            "failed": len(samples) - evaluated,
            "complete": evaluated == len(dataset),
            "ablations": ablations,
            "run": {**run, "weights": weights, "commit": commit()},
        }
        write_json(folder / "results.json", without_nan(figures))
        write_page(figures, folder / "table.md", folder)
        if document:
            write_page(figures, document, document.parent / "plots", "ablation-")
    return AblationResults(folder, figures)


def measured(
    names: Sequence[str],
    dataset: Dataset,
    samples: Sequence[Sample],
    source: Source,
    settings: Settings,
    base: Setting,
    cache: FeatureCache,
    *,
    progress: bool = False,
) -> tuple[dict[str, list[dict]], int]:
    """Measure each ablation; returns its :func:`rows`, and over how many images they are.

    Args:
        names: of :data:`~nerve_fast.evaluation.ablation.ablations.ABLATIONS`.
        samples: those of the data set that are looked at.
        source: of features at the timestep that others are compared with.
        settings: of the method.
        base: what others are compared with.
        cache: of features, in a folder beside ``counts.jsonl``.
        progress: whether a bar on stderr shows how far it is.
    """
    tried = {name: ABLATIONS[name].settings(base) for name in names}
    every = list(dict.fromkeys(setting for of in tried.values() for setting in of.values()))
    sources = {base.timestep: source}
    for timestep in {setting.timestep for setting in every} - {base.timestep}:
        # Settings with other timesteps are refused where the graph is no diffusion model.
        graph = cast(Any, source.graph).at_timestep(timestep)
        sources[timestep] = dataclasses.replace(source, graph=graph)
    made_of = {timestep: source.key() for timestep, source in sources.items()}
    rule = rule_of(settings, dataset.classes, len(dataset.classes), dataset.has_background)
    made_with = [settings.threshold, settings.area_threshold, settings.under]
    keys = {
        setting: digest(
            [made_of[setting.timestep], setting.config.to_dict(), setting.single_head, made_with]
        )
        for setting in every
    }

    def label_map(maps, size):
        return thresholded(maps, size, lambda stripe: stripe, **rule).cpu()

    path = cache.folder.parent / "counts.jsonl"
    counts = Counts(path, len(dataset.classes), set(keys.values()))
    images = {name_of(dataset, sample): sample for sample in samples}
    tally(dataset, images, keys, sources, label_map, cache, counts, progress=progress)
    # The same images for all settings.
    evaluated = [image for image in images if all((image, key) in counts for key in keys.values())]
    refuse_none(len(evaluated), len(images))

    def matrices(setting):
        return (counts.matrix(image, keys[setting]) for image in evaluated)

    measured_rows = {name: rows(settings, base, matrices) for name, settings in tried.items()}
    return measured_rows, len(evaluated)


def walked_steps(
    features: Features, setting: Setting, steps: Sequence[int | None], backend: str
) -> dict[int | None, Tensor]:
    """Walk on an image with settings that differ in the number of steps alone.

    Args:
        features: of the image.
        setting: one of them; its own number of steps is not looked at.
        steps: numbers of steps, all taken from one walk; ``None`` is the limit, which is another.
        backend: what carries out the walk.

    Returns:
        ``(K, h, w)`` float32 on the tokens of the graph, by the number of steps.
    """
    graph, entropy = features.graph, features.entropy
    if setting.single_head:
        head = entropy[0].argmin()[None]
        graph = GraphFeatures(graph.q[:, head], graph.k[:, head], graph.grid)
        entropy = entropy[:, head]
    prior = features.prior.flatten(1).T[None]

    def walked(count, return_steps=()):
        (found,) = walk(
            graph,
            prior,
            setting.config.replace(steps=count),
            entropy=entropy,
            backend=backend,
            return_steps=return_steps,
        )
        return found

    maps: dict[int | None, Tensor] = {}
    if None in steps:
        maps[None] = walked(None).maps
    if counts := [count for count in steps if count is not None]:
        maps |= walked(max(counts), counts).at_steps
    return {count: maps[count] for count in steps}


def alike_but_for_steps(settings: Iterable[Setting]) -> list[list[Setting]]:
    """Group settings whose members differ in the number of steps alone."""
    groups: dict[Setting, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(setting.with_config(steps=0), []).append(setting)
    return list(groups.values())


def tally(
    dataset: Dataset,
    images: Mapping[str, Sample],
    keys: dict[Setting, str],
    sources: dict[int, Source],
    label_map: Callable[[Tensor, tuple[int, int]], Tensor],
    cache: FeatureCache,
    counts: Counts,
    *,
    progress: bool = False,
) -> None:
    """Count every setting on every image, except for what ``counts`` holds already.

    Args:
        images: by their names in ``counts``.
        keys: the settings, with their names in ``counts``.
        sources: of features, by timestep.
        label_map: from ``(K, h, w)`` and ``(H, W)`` to labels ``(H, W)``, ``K`` for none.
        progress: whether a bar on stderr shows how far it is.
    """
    hidden = None if progress else True
    for called, sample in tqdm(images.items(), "images", unit="image", disable=hidden):
        missing = {setting: key for setting, key in keys.items() if (called, key) not in counts}
        if not missing:
            continue
        try:
            matrices = confusions(dataset, sample, missing, sources, label_map, cache)
        except InputError as error:
            failure(sample, error)
            continue
        # In the order of the settings, however they were grouped.
        counts.add(called, {key: matrices[key] for key in missing.values()})


def confusions(
    dataset: Dataset,
    sample: Sample,
    missing: dict[Setting, str],
    sources: dict[int, Source],
    label_map: Callable[[Tensor, tuple[int, int]], Tensor],
    cache: FeatureCache,
) -> dict[str, Tensor]:
    """The confusion matrix ``(K, K+1)`` of each of some settings on an image, by the setting's key.

    Args:
        missing: the settings, with their keys.
        sources, label_map, cache: as for :func:`tally`.

    Raises:
        InputError: the image or its mask cannot be read, or a network gave values that are not
            finite.
    """
    image, truth = read(dataset, sample, len(dataset.classes))
    matrices = {}
    for timestep in sorted({setting.timestep for setting in missing}):
        source = sources[timestep]
        features = cache.features(source, plain(sample.name), image).to(source.graph.device)
        of_timestep = [setting for setting in missing if setting.timestep == timestep]
        for alike in alike_but_for_steps(of_timestep):
            steps = [setting.config.steps for setting in alike]
            maps = walked_steps(features, alike[0], steps, source.backend)
            for setting in alike:
                labels = label_map(maps[setting.config.steps], (truth.shape[0], truth.shape[1]))
                matrices[missing[setting]] = confusion_matrix(
                    labels, truth, len(dataset.classes), unlabelled=True
                )
    return matrices
