"""A method as it was asked for: its settings, what its figures depend on, and its networks."""

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch

from nerve_fast import datasets
from nerve_fast.backbones.graph import load_graph
from nerve_fast.backbones.loading import hide_loading_bars
from nerve_fast.certainty import Certainty
from nerve_fast.config import NerveConfig
from nerve_fast.datasets import Dataset, Sample
from nerve_fast.datasets.loading import find
from nerve_fast.dispatch import choose
from nerve_fast.errors import InputError, SettingError, check_choice
from nerve_fast.evaluation.presets import (
    Settings,
    clip_of,
    diffusion_of,
    graph_of,
    iseg_of,
    note_of,
    settings_of,
)
from nerve_fast.evaluation.segmenter import Segmenter, prior_of
from nerve_fast.evaluation.settings import AblationSettings, EvaluationSettings, MethodSettings
from nerve_fast.pipeline.loading import device_and_dtype, model_sources
from nerve_fast.pipeline.settings import ModelSettings
from nerve_fast.priors import ENTRIES, load_prior
from nerve_fast.refiners import REFINERS
from nerve_fast.utils.provenance import digest

logger = logging.getLogger(__name__)


def dataset_asked_for(asked: MethodSettings) -> Dataset:
    """The data set, of which at least one image has its files; others may lack them.

    Raises:
        InputError: the data set cannot be listed, or no image that was asked for is complete.
    """
    dataset = find(asked.dataset, cast(Path | None, asked.root), cast(int | None, asked.max_pixels))
    missing = None
    for sample in dataset.samples[: asked.limit]:
        try:
            if sample.image:  # The tiny scenes have no files.
                dataset.check_files(sample)
            return dataset
        except InputError as error:
            missing = missing or error
    raise missing or InputError(f"the data set {dataset.name} holds no image")


def settings_asked_for(asked: EvaluationSettings | AblationSettings, dataset: Dataset) -> Settings:
    """The preset's settings on a data set, with what was asked for in their place.

    Raises:
        InputError: a name is unknown, a value is out of its range, or a setting was given that the
            refiner does not read.
    """
    settings = settings_of(
        asked.preset,
        dataset.name,
        dataset.has_background,
        prior=asked.prior,
        refiner=asked.refiner,
        vocabulary=asked.vocabulary,
        resolution=asked.prior_resolution,
        window=asked.prior_window,
        stride=asked.prior_stride,
        support=asked.prior_support,
        logit_scale=asked.logit_scale,
        threshold=asked.threshold,
        under=asked.background,
        networks=asked.prior_networks,
    )
    _refuse_unread_of_prior(asked, settings.prior)
    prior_of(settings, background_of(dataset))
    Certainty(settings.threshold, settings.under).check(dataset.classes)
    refuse_unread(asked.models, asked.config, settings.refiner)
    return settings


def background_of(dataset: Dataset) -> str | None:
    """The class that is whatever no other class is."""
    return dataset.classes[0] if dataset.has_background else None


def _refuse_unread_of_prior(asked: MethodSettings, prior: str) -> None:
    check_choice("prior", prior, ENTRIES)
    named = {
        "prior_resolution": "resolution",
        "prior_window": "window",
        "prior_stride": "stride",
        "prior_support": "support",
        "logit_scale": "logit_scale",
    }
    for name, field in named.items():
        if getattr(asked, name) is not None and field not in ENTRIES[prior].reads:
            raise SettingError(
                "{" + name + "} is {0}, which the prior {1} does not read; leave it out",
                getattr(asked, name),
                prior,
            )


def refuse_unread(models: ModelSettings, config: NerveConfig, refiner: str) -> None:
    """Raise a :class:`SettingError` where a setting was given that the refiner does not read."""
    of_walk = [*_changed(models, ("backend",)), *_changed(config)]
    unread = []
    if not needs_graph(refiner):
        unread += _changed(models, ("diffusion", "graph", "layers", "timestep", "seed"))
    if refiner != "walk":
        unread += of_walk
    if unread:
        readers = ["walk"] if set(unread) & set(of_walk) else list(filter(needs_graph, REFINERS))
        raise SettingError(
            "the refiner {0} does not read "
            + ", ".join(f"{{{name}}}" for name in unread)
            + "; leave out what it does not read, or take a refiner that reads all of it: "
            + ", ".join(f"{{refiner}} {name}" for name in readers),
            refiner,
        )


def _changed(settings, names: Sequence[str] | None = None) -> list[str]:
    """The fields, of those named or of all, that are not at their defaults."""
    return [
        field.name
        for field in dataclasses.fields(settings)
        if (names is None or field.name in names) and getattr(settings, field.name) != field.default
    ]


def refiner_arguments(asked: MethodSettings, settings: Settings, dataset: str) -> dict:
    """Return the arguments of the settings' refiner on a data set."""
    pamr: dict[str, Any] = {"seen": settings.resolution if settings.protocol == "mmseg" else None}
    if settings.prior == "ovdiff":
        pamr = {"dilations": (1, 2, 4, 8, 12, 24), "at": "maps"}
    return {
        "walk": {"config": asked.config, "backend": asked.models.backend},
        "iseg": iseg_of(dataset),
        "cliper": {"cut": settings.cut},
        "pamr": pamr,
    }.get(settings.refiner, {})


def needs_graph(refiner: str) -> bool:
    """Whether a refiner works on the queries and keys of a network."""
    return refiner != "none" and REFINERS[refiner].needs_graph


def sources(asked: MethodSettings) -> tuple[str, str]:
    """Where CLIP and the diffusion model come from; where nothing is said, CLIP is the preset's."""
    models = asked.models
    clip = models.clip
    if clip is None and models.models is None:
        clip = clip_of(asked.preset, asked.dataset)
    clip, diffusion = model_sources(models.models, clip, models.diffusion)
    return str(clip), str(diffusion)


def graph(asked: MethodSettings) -> str | None:
    """Where the graph comes from: ``None`` is the diffusion model, also where one is named."""
    models = asked.models
    if models.graph is not None:
        return str(models.graph)
    named = models.models is not None or models.diffusion is not None
    return None if named else graph_of(asked.preset)


def layers_and_timestep(asked: MethodSettings) -> tuple[Sequence[str] | None, int]:
    """The graph's layers and time step: the preset's where none were asked for."""
    models = asked.models
    layers: Sequence[str] | None
    layers, timestep = diffusion_of(asked.preset)
    named = models.models is not None or graph(asked) is not None
    if models.layers is not None or named:
        layers = models.layers
    if timestep is None or _changed(models, ("timestep",)) or named:
        timestep = models.timestep
    return layers, timestep


def description(
    asked: MethodSettings,
    dataset: Dataset,
    settings: Settings,
    classes: Sequence[Sequence[str]],
    device: torch.device | str | None,
) -> dict:
    """All that the figures depend on, as far as it is known before the models are loaded."""
    device, dtype = device_and_dtype(device, asked.models.dtype)
    clip, diffusion = sources(asked)
    refiner: dict[str, Any] = {"name": settings.refiner}
    if settings.refiner != "none":
        arguments = refiner_arguments(asked, settings, dataset.name)
        for field in dataclasses.fields(cast(Any, REFINERS[settings.refiner])):
            refiner[field.name] = arguments.get(field.name, field.default)
    if "config" in refiner:
        refiner["config"] = refiner["config"].to_dict()
    models = {
        "clip": clip,
        "templates": len(prior_of(settings).prompts),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "compile": asked.models.compile,
    }
    if needs_graph(settings.refiner):
        (layers, timestep), source = layers_and_timestep(asked), graph(asked)
        if source is None:
            models |= {
                "diffusion": diffusion,
                "layers": list(layers) if layers else "of the last up-block",
                "timestep": timestep,
            }
        else:
            models |= {"graph": source, "layers": list(layers) if layers else "the last one"}
    return {
        "dataset": {
            "name": dataset.name,
            "root": str(Path(asked.root).resolve()) if asked.root else None,
            "images": len(dataset),
            "classes": list(dataset.classes),
            "words": [list(words) for words in classes],
        },
        "preset": {"name": asked.preset, "note": note_of(asked.preset)},
        "settings": dataclasses.asdict(settings),
        "refiner": refiner,
        "seed": asked.models.seed,
        "models": models,
        "versions": {
            name: metadata.version(name)
            for name in ("nerve-fast", "torch", "transformers", "diffusers", "pillow")
        },
    }


def load_segmenter(
    asked: MethodSettings,
    dataset: Dataset,
    settings: Settings,
    device: torch.device | str | None,
    *,
    progress: bool = False,
) -> tuple[Segmenter, dict]:
    """The method with its networks, and what identifies their weights.

    Raises:
        InputError: a model is not available, or does not fit the settings.
    """
    hide_loading_bars()
    models = asked.models
    device, dtype = device_and_dtype(device, models.dtype)
    clip_source, diffusion_source = sources(asked)
    if settings.refiner == "walk":
        choose(models.backend, device, dtype)
    classes = datasets.words(dataset, settings.vocabulary)
    others = datasets.competing(dataset, settings.vocabulary)
    stuff = datasets.stuff(dataset, settings.vocabulary)
    said = datasets.said(dataset, settings.vocabulary)
    # The words of the background may be others than its name.
    background = classes[0][0] if dataset.has_background else None
    config = prior_of(settings, background, others, stuff, said)
    prior = load_prior(config, clip_source, device=device, dtype=dtype)
    weights = {"prior": prior.identity}
    refiner = source = None
    if needs_graph(settings.refiner):
        layers, timestep = layers_and_timestep(asked)
        source = load_graph(
            graph(asked),
            diffusion_source,
            device=device,
            dtype=dtype,
            layers=layers,
            timestep=timestep,
        )
        weights["graph"] = source.identity
    if settings.refiner != "none":
        arguments = refiner_arguments(asked, settings, dataset.name)
        refiner = REFINERS[settings.refiner](**arguments)
    if models.compile:
        for part in (getattr(prior, "clip", None), source):
            if part is not None and hasattr(part, "compile"):
                part.compile()
    prior.check_labels(classes, progress=progress)
    segmenter = Segmenter(
        prior,
        settings,
        classes,
        dataset.has_background,
        refiner,
        source,
        models.seed,
        dataset.classes,
    )
    return segmenter, weights


def name_of(dataset: Dataset, sample: Sample) -> str:
    """A name for an image and its truth, which changes when one of their files does."""
    files = []
    for path in filter(None, (sample.image, sample.mask)):
        # Where a file cannot be looked at, reading it says why.
        with contextlib.suppress(OSError, ValueError):
            state = path.stat()
            files.append([str(path.absolute()), state.st_size, state.st_mtime_ns])
    return f"{dataset.name}: {sample.name} {digest(files)}"


def failure(sample: Sample, error: InputError) -> None:
    """Log that an image could not be evaluated, and why."""
    told = str(error)
    # What a network says does not name the image.
    of_file = any(told.startswith(str(path)) for path in (sample.image, sample.mask) if path)
    logger.error("%s", told if of_file else f"{sample.image or sample.name}: {told}")


def refuse_none(evaluated: int, images: int) -> None:
    """Raise an :class:`InputError` where of some images none could be evaluated."""
    if images and not evaluated:
        raise InputError(
            f"none of {images} images could be evaluated, so there are no figures; what was wrong "
            "with each is said above"
        )
