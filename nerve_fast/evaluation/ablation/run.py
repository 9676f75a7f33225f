"""The command ``ablate``: features of each image once, then each setting only walks.

The folder holds ``features/``, what was computed of each image, and ``counts.jsonl``, what each
setting made of it; what is there of earlier runs, of other ablations too, is not done again as long
as the files of the image, the models and the packages are what they were.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from nerve_fast import datasets
from nerve_fast.backbones.diffusion import DiffusionFeatures
from nerve_fast.config import NerveConfig
from nerve_fast.datasets import Dataset, Sample
from nerve_fast.errors import InputError
from nerve_fast.evaluation import record
from nerve_fast.evaluation.ablation.ablations import ABLATIONS, Setting
from nerve_fast.evaluation.ablation.features import FeatureCache, Features, Source
from nerve_fast.evaluation.ablation.page import table, write_page
from nerve_fast.evaluation.method import (
    description,
    load_segmenter,
    name_of,
    settings_asked_for,
)
from nerve_fast.evaluation.metrics import confusion_matrix, mean_iou, without_nan
from nerve_fast.evaluation.presets import Settings
from nerve_fast.evaluation.rules import thresholded
from nerve_fast.evaluation.segmenter import prior_of
from nerve_fast.pipeline.loading import device_and_dtype
from nerve_fast.refiners import walk
from nerve_fast.utils.files import prepare_folder, written_whole
from nerve_fast.utils.processes import notes
from nerve_fast.utils.provenance import commit, digest
from nerve_fast.utils.units import parse_bytes

RESAMPLES = 1000
"""Of the images, for the interval of a difference."""


class Counts:
    """Confusion matrices of images and settings, in a file that grows by a line an image.

    A run that was stopped goes on where it was: what is not whole of the last line is dropped.

    Args:
        path: of the file; it need not be there.
        classes: ``K``.
        keys: of the settings that are asked for; of others in the file nothing is known.

    Raises:
        InputError: the file cannot be read or written.
    """

    def __init__(self, path: Path, classes: int, keys: Collection[str]):
        self.path = path
        self.classes = classes
        self.keys = keys
        self.known: dict[tuple[str, str], Tensor] = {}
        if path.exists():
            record.drop_cut_off(path)
            record.read_lines(path, self._take)

    def _take(self, line: dict) -> None:
        image, counts = line["image"], line["counts"]
        for key in self.keys:
            if key in counts:
                self.known[image, key] = record.decoded(
                    counts[key], (self.classes, self.classes + 1)
                )

    def __contains__(self, of: tuple[str, str]) -> bool:
        return of in self.known

    def matrix(self, image: str, key: str) -> Tensor:
        """``(K, K+1)`` int64 of an image and the key of a setting, rows are the truth."""
        truth, prediction, count = self.known[image, key].T
        matrix = torch.zeros(self.classes, self.classes + 1, dtype=torch.int64)
        matrix[truth, prediction] = count
        return matrix

    def add(self, image: str, matrices: dict[str, Tensor]) -> None:
        """Keep the matrices of an image, by the keys of settings."""
        counts = {key: record.encoded(matrix) for key, matrix in matrices.items()}
        line = {"image": image, "counts": counts}
        record.add_line(self.path, line)
        self._take(line)


def ablate(options, config: NerveConfig) -> int:
    """Run the ablations named, print their tables and write them with their plots.

    Args:
        options: the flags of the command line.
        config: of the walk that the others are compared with.

    Returns:
        The exit code, 0.

    Raises:
        InputError: a mistake, or an image or mask that cannot be read.
    """
    cache_size = parse_bytes(options.cache_size)
    dataset = datasets.load(options.dataset, options.root)
    settings = settings_asked_for(options, dataset)
    if settings.score is not None:
        raise InputError(
            f"the preset {options.preset} labels pixels by a score of each class, which needs more "
            "than the walk's result; take one with a threshold, such as nerve or fixed"
        )
    classes = datasets.words(dataset, settings.vocabulary)
    folder = options.output or Path("ablations", f"{dataset.name}-{options.preset}")
    for place in (folder, *([options.document.parent] if options.document else [])):
        prepare_folder(place)
    samples = dataset.samples[: options.limit]
    device, _ = device_and_dtype(options.device, None)
    run = description(options, config, dataset, settings, classes, device)
    with notes():
        segmenter, weights = load_segmenter(options, config, dataset, settings, device)
        source = Source(
            segmenter.clip,
            segmenter.refiner.diffusion,
            classes,
            prior_of(settings),
            digest(weights),
            run["versions"],
            options.backend,
            options.seed,
        )
        cache = FeatureCache(folder / "features", cache_size)
        ablations = measured(options.names, dataset, samples, source, settings, config, cache)
    document = {
        "command": options.command,
        "images": len(samples),
        "complete": len(samples) == len(dataset),
        "ablations": ablations,
        "run": {**run, "weights": weights, "commit": commit()},
    }
    with written_whole(folder / "results.json") as path:
        text = json.dumps(without_nan(document), indent=2, ensure_ascii=False)
        path.write_text(text, encoding="utf-8")
    for name, rows in ablations.items():
        print(f"{ABLATIONS[name].title}\n\n{table(ABLATIONS[name], rows)}")
    write_page(document, folder / "table.md", folder)
    if options.document:
        write_page(document, options.document, options.document.parent / "plots", "ablation-")
    print(f"written to {folder}")
    return 0


def measured(
    names: Sequence[str],
    dataset: Dataset,
    samples: Sequence[Sample],
    source: Source,
    settings: Settings,
    config: NerveConfig,
    cache: FeatureCache,
) -> dict[str, list[dict]]:
    """The :func:`rows` of each ablation.

    Args:
        names: of :data:`~nerve_fast.evaluation.ablation.ablations.ABLATIONS`.
        samples: those of the data set that are looked at.
        source: of features at the timestep that others are compared with.
        settings: of the method.
        config: of the walk that others are compared with.
        cache: of features, in a folder beside ``counts.jsonl``.
    """
    base = Setting(config, source.diffusion.timestep)
    tried = {name: ABLATIONS[name].settings(base) for name in names}
    every = list(dict.fromkeys(setting for of in tried.values() for setting in of.values()))
    sources = {
        timestep: dataclasses.replace(source, diffusion=source.diffusion.at_timestep(timestep))
        for timestep in {setting.timestep for setting in every}
    }
    made_of = {timestep: source.key() for timestep, source in sources.items()}
    rule = {"threshold": settings.threshold, "area_threshold": settings.area_threshold}
    keys = {
        setting: digest(
            [made_of[setting.timestep], setting.config.to_dict(), setting.single_head, rule]
        )
        for setting in every
    }

    def label_map(maps, size):
        return thresholded(maps, size, lambda stripe: stripe, **rule).cpu()

    path = cache.folder.parent / "counts.jsonl"
    counts = Counts(path, len(dataset.classes), set(keys.values()))
    images = {name_of(dataset, sample): sample for sample in samples}
    tally(dataset, images, keys, sources, label_map, cache, counts)

    def matrices(setting):
        return (counts.matrix(image, keys[setting]) for image in images)

    return {name: rows(settings, base, matrices) for name, settings in tried.items()}


def walked(features: Features, setting: Setting, backend: str) -> Tensor:
    """What a setting makes of an image: ``(K, h, w)`` float32 on the UNet's tokens."""
    graph, entropy = features.graph, features.entropy
    if setting.single_head:
        head = entropy[0].argmin()[None]
        graph = DiffusionFeatures(graph.q[:, head], graph.k[:, head], graph.grid)
        entropy = entropy[:, head]
    return walk(graph, features.prior, setting.config, entropy=entropy, backend=backend)


def tally(
    dataset: Dataset,
    images: Mapping[str, Sample],
    keys: dict[Setting, str],
    sources: dict[int, Source],
    label_map: Callable[[Tensor, tuple[int, int]], Tensor],
    cache: FeatureCache,
    counts: Counts,
) -> None:
    """Every setting on every image, but for what ``counts`` has already.

    Args:
        images: by how ``counts`` calls them.
        keys: the settings, and how ``counts`` calls them.
        sources: of features, by timestep.
        label_map: from ``(K, h, w)`` and ``(H, W)`` to labels ``(H, W)``, ``K`` for none.
    """
    for called, sample in tqdm(images.items(), "images", unit="image", disable=None):
        missing = {setting: key for setting, key in keys.items() if (called, key) not in counts}
        if not missing:
            continue
        image, truth = dataset.read(sample)
        matrices = {}
        for timestep in sorted({setting.timestep for setting in missing}):
            source = sources[timestep]
            features = cache.features(source, sample.name, image).to(source.diffusion.unet.device)
            for setting, key in missing.items():
                if setting.timestep == timestep:
                    maps = walked(features, setting, source.backend)
                    labels = label_map(maps, tuple(truth.shape))
                    matrices[key] = confusion_matrix(
                        labels, truth, len(dataset.classes), unlabelled=True
                    )
        counts.add(called, matrices)


def rows(
    settings: dict[str, Setting],
    base: Setting,
    matrices: Callable[[Setting], Iterable[Tensor]],
) -> list[dict]:
    """What came of each setting of an ablation; mIoU in [0, 1], ``nan`` where no pixel counts.

    Args:
        settings: by label.
        base: what they are compared with, one of them.
        matrices: of a setting ``(K, K+1)`` an image, the last column for pixels without a label.

    Returns:
        One a setting. ``interval`` is the middle 95 % of its difference to ``base`` over images
        drawn again with replacement, the same for both.
    """
    measured = {}
    for setting in settings.values():
        total, parts = 0, []
        for matrix in matrices(setting):
            total = total + matrix
            parts.append(unions(matrix))
        measured[setting] = mean_iou(total), torch.stack(parts)
    return [
        {
            "label": label,
            "config": setting.config.to_dict(),
            "timestep": setting.timestep,
            "single_head": setting.single_head,
            "base": setting == base,
            "miou": measured[setting][0],
            "interval": difference_interval(measured[setting][1], measured[base][1]),
        }
        for label, setting in settings.items()
    ]


def unions(matrix: Tensor) -> Tensor:
    """Intersection and union of each class, ``(K, K+1)`` to ``(2, K)``; they add up over images."""
    intersection = matrix.diagonal()
    return torch.stack([intersection, matrix.sum(1) + matrix.sum(0)[:-1] - intersection])


def difference_interval(own: Tensor, other: Tensor) -> list[float]:
    """The middle 95 % of the difference in mIoU over bootstrap samples of the images.

    Samples in which no pixel counts are left out; ``nan`` where that is all of them.

    Args:
        own, other: ``(images, 2, K)``, :func:`unions` of two settings.
    """
    images = len(own)
    drawn = torch.randint(images, (RESAMPLES, images), generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(RESAMPLES, images, dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(weights))

    def scores(parts):
        intersection, union = (weights @ parts.flatten(1).double()).view(RESAMPLES, 2, -1).unbind(1)
        return (intersection / union).nanmean(1)

    edges = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return (scores(own) - scores(other)).nanquantile(edges).tolist()
