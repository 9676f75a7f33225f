"""A method as the flags have it: its settings, what its figures depend on, and its networks."""

import argparse
import dataclasses
from collections.abc import Sequence
from importlib import metadata

import torch

from nerve_fast import datasets
from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.diffusion import DiffusionBackbone
from nerve_fast.backbones.loading import hide_loading_bars
from nerve_fast.backbones.templates import IMAGENET_TEMPLATES
from nerve_fast.backbones.text_cache import fingerprint
from nerve_fast.cli import flags
from nerve_fast.cli.flags import DTYPES
from nerve_fast.config import NerveConfig
from nerve_fast.datasets import Dataset, Sample
from nerve_fast.dispatch import choose
from nerve_fast.errors import InputError
from nerve_fast.evaluation.presets import Settings, clip_of, iseg_of, note_of, settings_of
from nerve_fast.evaluation.segmenter import Segmenter, prior_of
from nerve_fast.pipeline.loading import device_and_dtype, model_sources
from nerve_fast.priors import read_out_of
from nerve_fast.refiners import PAMR, ISeg, Walk
from nerve_fast.utils.provenance import digest

REFINERS = {"none": None, "pamr": PAMR, "iseg": ISeg, "walk": Walk}


def settings_asked_for(options, dataset: Dataset) -> Settings:
    """The preset's settings with those of the flags in their place.

    Raises:
        InputError: a name is unknown, a value out of its range, or a flag is given that the refiner
            does not read.
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
    refuse_unread(options, settings.refiner)
    return settings


def refuse_unread(options, refiner: str) -> None:
    """Raise an :class:`InputError` where flags are given that the refiner does not read."""
    usual = argparse.ArgumentParser()
    flags.add_models(usual, resolution=False)
    flags.add_config(usual)
    of_diffusion = ["diffusion", "layers", "timestep", "seed"]
    of_walk = ["backend", *(field.name for field in dataclasses.fields(NerveConfig))]
    unread = []
    if not needs_diffusion(refiner):
        unread += of_diffusion
    if refiner != "walk":
        unread += of_walk
    given = [name for name in unread if getattr(options, name) != usual.get_default(name)]
    if given:
        said = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        readers = "walk" if set(given) & set(of_walk) else "walk or --refiner iseg"
        raise InputError(
            f"the refiner {refiner} does not read {said}; leave out what it does not read, or take "
            f"--refiner {readers}"
        )


def refiner_arguments(options, config: NerveConfig, refiner: str, dataset: str) -> dict:
    """What a refiner is made with on a data set, besides the diffusion model."""
    return {
        "walk": {"config": config, "backend": options.backend, "seed": options.seed},
        "iseg": {"seed": options.seed, **iseg_of(dataset)},
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
        arguments = refiner_arguments(options, config, settings.refiner, dataset.name)
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
    arguments = refiner_arguments(options, config, settings.refiner, dataset.name)
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


def name_of(dataset: Dataset, sample: Sample) -> str:
    """What tells an image and its truth from others, and from what their files were before."""
    files = []
    for path in filter(None, (sample.image, sample.mask)):
        # Where a file is missing, reading it says so.
        if path.exists():
            state = path.stat()
            files.append([str(path.absolute()), state.st_size, state.st_mtime_ns])
    return f"{dataset.name}: {sample.name} {digest(files)}"
