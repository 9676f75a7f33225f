"""The command ``evaluate``: a data set in, a table and ``results.json`` out."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch
from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

from nerve_fast import datasets, visualize
from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.diffusion import DiffusionBackbone
from nerve_fast.backbones.loading import hide_loading_bars
from nerve_fast.backbones.templates import IMAGENET_TEMPLATES
from nerve_fast.backbones.text_cache import fingerprint
from nerve_fast.bench.machine import commit
from nerve_fast.config import NerveConfig
from nerve_fast.datasets import Dataset
from nerve_fast.dispatch import choose
from nerve_fast.errors import InputError
from nerve_fast.evaluation import record
from nerve_fast.evaluation.metrics import (
    IGNORED,
    boundary_counts,
    boundary_iou,
    confusion_matrix,
    mean_iou,
    scores,
)
from nerve_fast.evaluation.presets import Settings, clip_of, note_of, settings_of
from nerve_fast.evaluation.segmenter import Segmenter, prior_of
from nerve_fast.files import written_whole
from nerve_fast.flags import DTYPES
from nerve_fast.pipeline import device_and_dtype, model_sources
from nerve_fast.priors import read_out_of
from nerve_fast.processes import notes, process_group
from nerve_fast.refiners import PAMR, ISeg, Walk

REFINERS = {"none": None, "pamr": PAMR, "iseg": ISeg, "walk": Walk}


def evaluate(options, config: NerveConfig) -> int:
    """Segment a data set's images and say how right that is.

    Under ``accelerate launch`` each process takes its share of the images. What earlier processes
    of the same run have done is not done again.

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
    samples = {sample.name: sample for sample in dataset.samples[: options.limit]}
    count = len(classes)
    with process_group(options.device) as (index, processes, device), notes():
        run = description(options, config, dataset, settings, classes, device)
        if index == 0 and options.fresh:
            record.forget(folder)
        wait(processes)
        record.refuse_another(folder, run)
        known = record.done(folder, count)
        missing = [name for name in samples if name not in known]
        # Nobody adds an image before everybody has seen which ones are there.
        wait(processes)
        if missing or options.draw:
            segmenter, weights = load_segmenter(options, config, dataset, settings, device)
            if index == 0:
                record.begin(folder, {**run, "weights": weights, "commit": commit()})
            wait(processes)
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
            known = record.done(folder, count)
            results = summary(folder, dataset, known, list(samples))
            print("\n".join(table(results)))
            print(f"written to {folder / 'results.json'}")
            if options.draw:
                draw(folder, dataset, segmenter, known, samples, options.draw)
    return 0


def wait(processes: int) -> None:
    """For the other processes, to be where this one is."""
    if processes > 1:
        PartialState().wait_for_everyone()


def settings_asked_for(options, dataset: Dataset) -> Settings:
    """The preset's settings with those of the flags in their place.

    Raises:
        InputError: a name is unknown, or a value out of its range.
    """
    settings = settings_of(
        options.preset,
        dataset.name,
        dataset.has_background,
        prior=options.prior,
        refiner=options.refiner,
        vocabulary=options.vocabulary,
        resolution=options.prior_resolution,
        window=options.prior_window,
        stride=options.prior_stride,
        logit_scale=options.logit_scale,
        threshold=options.threshold,
        proxy=options.prior_proxy,
    )
    prior_of(settings)
    return settings


def refiner_arguments(options, config: NerveConfig, refiner: str) -> dict:
    """What a refiner is made with, besides the diffusion model."""
    return {
        "walk": {"config": config, "backend": options.backend, "seed": options.seed},
        "iseg": {"seed": options.seed},
    }.get(refiner, {})


def needs_diffusion(refiner: str) -> bool:
    return refiner in ("iseg", "walk")


def sources(options) -> tuple[str, str]:
    """Of CLIP and of the diffusion model: those of the flags, else CLIP as the preset has it."""
    clip = options.clip
    if clip is None and options.models is None:
        clip = clip_of(options.preset)
    return tuple(map(str, model_sources(options.models, clip, options.diffusion)))


def description(
    options,
    config: NerveConfig,
    dataset: Dataset,
    settings: Settings,
    classes: Sequence[Sequence[str]],
    device: torch.device | str | None,
) -> dict:
    """All that the figures depend on, as far as it is known before the models are loaded."""
    device, dtype = device_and_dtype(device, DTYPES.get(options.dtype))
    clip, diffusion = sources(options)
    refiner = {"name": settings.refiner}
    if settings.refiner != "none":
        arguments = refiner_arguments(options, config, settings.refiner)
        for field in dataclasses.fields(REFINERS[settings.refiner]):
            if field.name != "diffusion":
                refiner[field.name] = arguments.get(field.name, field.default)
    if "config" in refiner:
        refiner["config"] = refiner["config"].to_dict()
    models = {
        "clip": clip,
        "templates": len(IMAGENET_TEMPLATES),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "compile": options.compile,
    }
    if needs_diffusion(settings.refiner):
        models |= {
            "diffusion": diffusion,
            "layers": options.layers or "of the last up-block",
            "timestep": options.timestep,
        }
    return {
        "dataset": {
            "name": dataset.name,
            "root": str(options.root.resolve()) if options.root else None,
            "images": len(dataset),
            "classes": list(dataset.classes),
            "words": [list(words) for words in classes],
        },
        "preset": {"name": options.preset, "note": note_of(options.preset)},
        "settings": dataclasses.asdict(settings),
        "refiner": refiner,
        "seed": options.seed,
        "models": models,
        "versions": {
            name: metadata.version(name)
            for name in ("nerve-fast", "torch", "transformers", "diffusers", "pillow")
        },
    }


def load_segmenter(
    options,
    config: NerveConfig,
    dataset: Dataset,
    settings: Settings,
    device: torch.device | str | None,
) -> tuple[Segmenter, dict]:
    """The method, with its networks, and what tells their weights from others.

    Raises:
        InputError: a model cannot be had, or does not fit the settings.
    """
    hide_loading_bars()
    device, dtype = device_and_dtype(device, DTYPES.get(options.dtype))
    clip_source, diffusion_source = sources(options)
    if settings.refiner == "walk":
        choose(options.backend, device, dtype)
    clip = CLIPBackbone.from_pretrained(clip_source, device=device, dtype=dtype)
    weights = {"clip": identity(clip.model.config, clip.model)}
    read_out = read_out_of(prior_of(settings), clip)
    if proxy := getattr(read_out, "proxy", None):
        weights["proxy"] = identity(proxy.model.config, proxy.model)
    networks = [clip]
    refiner = None
    arguments = refiner_arguments(options, config, settings.refiner)
    if needs_diffusion(settings.refiner):
        diffusion = DiffusionBackbone.from_pretrained(
            diffusion_source,
            device=device,
            dtype=dtype,
            layers=options.layers,
            timestep=options.timestep,
        )
        weights["diffusion"] = identity(diffusion.unet.config, diffusion.vae, diffusion.unet)
        weights["diffusion"]["layers"] = list(diffusion.layers)
        networks.append(diffusion)
        arguments["diffusion"] = diffusion
    if settings.refiner != "none":
        refiner = REFINERS[settings.refiner](**arguments)
    if options.compile:
        for network in networks:
            network.compile()
    classes = datasets.words(dataset, settings.vocabulary)
    clip.encode_words([word for words in classes for word in words], progress=True)
    return Segmenter(clip, settings, classes, dataset.has_background, refiner), weights


def identity(config, *modules: torch.nn.Module) -> dict:
    """The hub's revision, where the model is from there, and a digest of its weights."""
    return {"revision": getattr(config, "_commit_hash", None), "sha256": fingerprint(*modules)}


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


def without_nan(value):
    """``nan``, which JSON does not know, as ``None``."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if value != value else value


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


def draw(
    folder: Path,
    dataset: Dataset,
    segmenter: Segmenter,
    known: Mapping[str, record.Counts],
    samples: Mapping[str, datasets.Sample],
    count: int,
) -> None:
    """The images with the least and the largest mean IoU of their own, segmented once more."""
    classes = len(dataset.classes)
    own = {name: mean_iou(record.total(known, [name], classes)[0]) for name in samples}
    order = sorted((name for name in own if own[name] == own[name]), key=own.__getitem__)
    for kind, names in (("worst", order[:count]), ("best", order[::-1][:count])):
        for place, name in enumerate(tqdm(names, kind, unit="image", disable=None), start=1):
            image, truth = dataset.read(samples[name])
            picture = side_by_side(image, truth, segmenter(image), dataset.classes)
            visualize.save_picture(picture, folder / f"{kind}-{place:02}-{name}.png")
    print(f"pictures: {folder}/worst-*.png, best-*.png", file=sys.stderr)


def side_by_side(
    image: Image.Image, truth: torch.Tensor, prediction: torch.Tensor, classes: Sequence[str]
) -> Image.Image:
    """The image, its truth and the prediction, each with its own legend."""
    names = [*classes, "none"]
    truth = truth.long().masked_fill(truth == IGNORED, len(classes))
    panels = [
        image,
        *(visualize.overlay(image, labels.numpy(), names) for labels in (truth, prediction)),
    ]
    sheet = Image.new(
        "RGB",
        (sum(panel.width for panel in panels), max(panel.height for panel in panels)),
        "white",
    )
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width
    return sheet
