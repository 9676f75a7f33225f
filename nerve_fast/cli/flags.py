"""Flags that several commands have in common."""

import argparse
import dataclasses
import os
import typing
from collections.abc import Callable, Collection
from pathlib import Path

import torch

from nerve_fast.cli.labels import add_threshold, threshold_of
from nerve_fast.config import EXACT_TOKENS, GLOBAL_KEYS, SEED_CONFIG, NerveConfig
from nerve_fast.datasets.vocabulary import VOCABULARIES
from nerve_fast.dispatch import BACKEND_NAMES
from nerve_fast.errors import InputError
from nerve_fast.evaluation.presets import PRESETS, clip_of
from nerve_fast.normalization import NORMALIZATIONS

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CONFIG_HELP = {
    "alpha": "probability that a walker moves on",
    "beta": "share of the global part, the rest is local",
    "steps": "length of the walk, none: its limit",
    "radius": "of the local window, in tokens",
    "self_affinity": "affinity of a token with itself in the local part",
    "sharpness": "how much certain heads outweigh uncertain ones",
    "normalization": "how affinities become probabilities",
    "temperature": "of softmax",
    "tolerance": "of the limit, which --steps none walks to",
    "global_keys": "clusters that the global part takes its keys in, none: all keys",
}


def seed(text: str) -> int:
    """A seed as torch takes them.

    Raises:
        argparse.ArgumentTypeError: it is negative or too large.
    """
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2^63 - 1")
    return value


def keys(text: str) -> int | str | None:
    """A number of clusters, ``auto`` or ``none``."""
    word = text.casefold()
    return {"auto": "auto", "none": None}[word] if word in ("auto", "none") else int(text)


# In argparse's messages: "invalid number, auto or none value".
keys.__name__ = "number, auto or none"


def revision(text: str) -> tuple[str, str]:
    """``(model, revision)`` of ``model=revision``.

    Raises:
        argparse.ArgumentTypeError: the model is none that can come from the hub.
    """
    model, _, pinned = text.partition("=")
    if model not in ("clip", "diffusion", "graph") or not pinned:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not clip=REV, diffusion=REV or graph=REV, with a commit, tag or branch"
        )
    return model, pinned


def add_dataset(command) -> None:
    """Add the flags for the images and for the method whose settings are taken."""
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
    add_max_pixels(command)


CHANGES = (
    "prior",
    "prior_resolution",
    "prior_window",
    "prior_stride",
    "prior_support",
    "prior_networks",
    "logit_scale",
    "background",
    "vocabulary",
)
"""Names of what :func:`add_changes` adds."""


def add_changes(command) -> None:
    """Add the flags whose values take the place of the preset's."""
    over = command.add_argument_group("in place of the preset's")
    over.add_argument("--prior", metavar="NAME", help="such as naclip")
    over.add_argument("--prior-resolution", type=int, help="short side for CLIP")
    over.add_argument("--prior-window", type=int, help="side of CLIP's sliding window")
    over.add_argument("--prior-stride", type=int, help="step of the window (default: half of it)")
    over.add_argument("--prior-support", type=int, help="images made of each class (ovdiff)")
    _add_networks(over)
    over.add_argument("--logit-scale", type=float, help="of similarities, before the softmax")
    add_threshold(over)
    over.add_argument(
        "--vocabulary",
        metavar="NAME",
        help=f"words of the classes: {', '.join(VOCABULARIES)}",
    )


def method_of(options) -> dict:
    """The values of :func:`add_dataset`, :func:`add_changes` and :func:`add_models`.

    Returns:
        Arguments of :class:`~nerve_fast.evaluation.settings.MethodSettings`.
    """
    names = ("dataset", "root", "preset", "limit", "max_pixels", "output", *CHANGES)
    return {
        "models": models_of(options),
        "threshold": threshold_of(options.threshold),
        **{name: getattr(options, name) for name in names},
    }


def add_models(command, *, resolution: bool = True) -> None:
    """Add the flags for the networks.

    Args:
        command: the parser of a command.
        resolution: whether there is a flag for the resolution as well.
    """
    models = command.add_argument_group("models")
    models.add_argument(
        "--models", metavar="DIR|tiny", help="folder that holds clip/ and diffusion/"
    )
    models.add_argument(
        "--clip",
        metavar="ID|DIR",
        help="CLIP checkpoint, or what the prior has in its place (default: the prior's or the "
        "preset's, of most ViT-L/14)",
    )
    models.add_argument(
        "--diffusion", metavar="ID|DIR", help="Stable Diffusion (default: 2.1 base)"
    )
    models.add_argument(
        "--graph",
        metavar="ID|DIR",
        help="what says which tokens belong together: a DINO, DINOv2 or DINOv3 (default: the "
        "diffusion model)",
    )
    models.add_argument(
        "--revision",
        nargs="+",
        type=revision,
        default=[],
        metavar="MODEL=REV",
        help="commit, tag or branch of the hub's clip, diffusion or graph, as in "
        "clip=32bd64288804d66eefd0ccbe215aa642df71cc41 (default: main)",
    )
    models.add_argument(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="self-attentions of the UNet (default: last up-block)",
    )
    models.add_argument(
        "--timestep", type=int, default=100, help="noise that the UNet sees (default: 100)"
    )
    models.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    models.add_argument(
        "--dtype",
        choices=DTYPES,
        help="default: float16; on a CPU bfloat16 if that is faster, else float32",
    )
    models.add_argument("--backend", choices=BACKEND_NAMES, default="auto", help="default: auto")
    if resolution:
        models.add_argument(
            "--resolution",
            type=int,
            help="short side for the UNet, 0: the image's own (default: the model's)",
        )
    models.add_argument("--seed", type=seed, default=0, help="of the noise (default: 0)")
    models.add_argument(
        "--compile", action="store_true", help="torch.compile the networks: for many images"
    )


def models_of(options):
    """The :class:`~nerve_fast.pipeline.settings.ModelSettings` that the flags describe."""
    # It imports transformers.
    from nerve_fast.pipeline.settings import ModelSettings

    values = {
        field.name: getattr(options, field.name) for field in dataclasses.fields(ModelSettings)
    }
    for model, pinned in options.revision:
        values[model] = f"{_hub_id(options, model)}@{pinned}"
    return ModelSettings(**{**values, "dtype": DTYPES.get(options.dtype)})


def _hub_id(options, model: str) -> str:
    """The hub id that a revision is of: a flag's, or else the usual one.

    Raises:
        InputError: the model does not come from the hub.
    """
    from nerve_fast.pipeline.loading import model_sources

    named = getattr(options, model)
    local = options.models is not None or (named is not None and os.path.exists(named))
    if local or (named is None and model == "graph"):
        raise InputError(
            f"--revision pins {model}, which is no model of the hub; name one as --{model}"
        )
    clip: str | None
    if hasattr(options, "preset"):
        clip = clip_of(options.preset, getattr(options, "dataset", None))
    else:
        from nerve_fast.priors import ENTRIES

        entry = ENTRIES.get(getattr(options, "prior", ""))
        clip = None if entry is None else entry.clip
    usual_clip, usual_diffusion = model_sources(None, clip, None)
    return str(named or {"clip": usual_clip, "diffusion": usual_diffusion}[model])


def add_large(command) -> None:
    """Add the flags for large images."""
    large = command.add_argument_group("large images")
    large.add_argument(
        "--max-memory",
        help="beyond the models and the images, which take 12 bytes a pixel while they are read, "
        'such as "6GB" (default: nine tenths of the free)',
    )
    large.add_argument(
        "--global-keys",
        type=keys,
        default="auto",
        help="clusters that the global part takes its keys in; none computes everything exactly; "
        f"auto takes all keys up to {EXACT_TOKENS} tokens, {GLOBAL_KEYS} clusters beyond "
        "(default: auto)",
    )
    large.add_argument(
        "--max-key-error",
        type=float,
        help="double the clusters until the first step is within this of that with all keys",
    )
    large.add_argument(
        "--tile", type=int, help="side in pixels (default: 1.5 times the model's own, 768 for 512)"
    )
    large.add_argument(
        "--overlap", type=int, help="of tiles, in pixels (default: a sixth of a tile)"
    )


def add_max_pixels(command) -> None:
    """Add the flag for how large an image file may be."""
    command.add_argument(
        "--max-pixels",
        metavar="COUNT",
        help='decode images of so many pixels, such as "400MP", of files that are to be trusted '
        "(default: Pillow's limit, 178 MP)",
    )


def add_prior(command) -> None:
    """Add the flags for how CLIP's patches become the prior."""
    prior = command.add_argument_group("prior")
    prior.add_argument(
        "--prior",
        default="naclip",
        help="clip, maskclip, sclip, naclip (default), clearclip, gem, cliper, proxyclip, siglip, "
        "groupvit, clip-diy, pixelclip, car, ovdiff or iseg",
    )
    prior.add_argument(
        "--prior-resolution",
        type=int,
        help="short side for CLIP (default: 1.5 times its own; ovdiff: of all networks, 448)",
    )
    prior.add_argument(
        "--prior-window", type=int, help="side of CLIP's sliding window (default: none)"
    )
    prior.add_argument("--prior-stride", type=int, help="step of the window (default: half of it)")
    prior.add_argument(
        "--prior-support", type=int, default=32, help="images made of each label (ovdiff; 32)"
    )
    _add_networks(prior)
    prior.add_argument("--logit-scale", type=float, default=40.0, help="default: 40")


def prior_of(options):
    """The :class:`~nerve_fast.PriorConfig` of the flags of :func:`add_prior`."""
    # It imports transformers.
    from nerve_fast.priors import PriorConfig

    return PriorConfig(
        name=options.prior,
        resolution=options.prior_resolution,
        window=options.prior_window,
        stride=options.prior_stride,
        support=options.prior_support,
        logit_scale=options.logit_scale,
        networks=dict(options.prior_networks or ()),
    )


def network(text: str) -> tuple[str, str]:
    """``(name, source)`` of ``name=source``.

    Raises:
        argparse.ArgumentTypeError: one of the two is missing.
    """
    name, _, source = text.partition("=")
    if not name or not source:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=SOURCE, such as proxy=facebook/dino-vitb16"
        )
    return name, source


def _add_networks(group) -> None:
    group.add_argument(
        "--prior-network",
        dest="prior_networks",
        nargs="+",
        type=network,
        metavar="NAME=ID|DIR|FILE",
        help="what the prior looks with besides CLIP: proxy= a DINO (proxyclip), dino= and found= "
        "(clip-diy), weights= (pixelclip), judge= (car), diffusion=, dino= and detector= a SAM "
        "(ovdiff), diffusion= (iseg)",
    )


def add_config(command, *, leave_out: Collection[str] = (), seeds: bool = False) -> None:
    """Add a flag for each field of :class:`~nerve_fast.NerveConfig` but those to leave out.

    With ``seeds`` the help says the defaults for seeds alone too, where they are others.
    """
    graph = command.add_argument_group("graph stage")
    types = typing.get_type_hints(NerveConfig)
    for field in dataclasses.fields(NerveConfig):
        if field.name in leave_out:
            continue
        said = str(field.default)
        if seeds and getattr(SEED_CONFIG, field.name) != field.default:
            said += f", with seeds alone {getattr(SEED_CONFIG, field.name)}"
        graph.add_argument(
            "--" + field.name.replace("_", "-"),
            type=reader_of(types[field.name]),
            default=argparse.SUPPRESS,
            choices=NORMALIZATIONS if field.name == "normalization" else None,
            help=f"{CONFIG_HELP[field.name]} (default: {said})",
        )


def reader_of(kind: type) -> Callable[[str], object]:
    """Return a parser from a flag's text to a field's type; ``none`` where it may be ``None``."""
    members = typing.get_args(kind)
    if type(None) not in members:
        return kind
    (other,) = (member for member in members if member is not type(None))

    def read(text):
        return None if text.casefold() == "none" else other(text)

    # In argparse's messages: "invalid int or none value".
    read.__name__ = f"{other.__name__} or none"
    return read


def config_of(
    options, *, leave_out: Collection[str] = (), defaults: NerveConfig | None = None
) -> NerveConfig:
    """The settings of the graph stage: ``defaults`` with what the flags change."""
    return (defaults or NerveConfig()).replace(**config_given(options, leave_out=leave_out))


def config_given(options, *, leave_out: Collection[str] = ()) -> dict[str, object]:
    """The fields of :class:`~nerve_fast.NerveConfig` that flags were given for."""
    names = {field.name for field in dataclasses.fields(NerveConfig)}.difference(leave_out)
    return {name: getattr(options, name) for name in names if hasattr(options, name)}
