"""Flags that several commands have in common."""

import argparse
import dataclasses

import torch

from nerve_fast.config import TOKEN_BUDGET, NerveConfig
from nerve_fast.dispatch import BACKEND_NAMES
from nerve_fast.normalization import NORMALIZATIONS

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CONFIG_HELP = {
    "alpha": "probability that a walker moves on",
    "beta": "share of the global part, the rest is local",
    "steps": "length of the walk",
    "radius": "of the local window, in tokens",
    "self_affinity": "affinity of a token with itself in the local part",
    "sharpness": "how much certain heads outweigh uncertain ones",
    "normalization": "how affinities become probabilities",
    "temperature": "of softmax",
    "global_stride": "pool keys and values of the global part; 1 is exact",
}


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2^63 - 1")
    return value


def add_models(command, *, resolution: bool = True) -> None:
    models = command.add_argument_group("models")
    models.add_argument(
        "--models", metavar="DIR|tiny", help="folder that holds clip/ and diffusion/"
    )
    models.add_argument("--clip", metavar="ID|DIR", help="CLIP checkpoint (default: ViT-L/14)")
    models.add_argument(
        "--diffusion", metavar="ID|DIR", help="Stable Diffusion (default: 2.1 base)"
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
    models.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, else float16")
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


def add_large(command) -> None:
    large = command.add_argument_group("large images")
    large.add_argument(
        "--max-memory", help='beyond the models, such as "6GB" (default: nine tenths of the free)'
    )
    large.add_argument(
        "--token-budget",
        type=int,
        default=TOKEN_BUDGET,
        help="tokens that the global part takes keys from; more are pooled, "
        "0 computes everything exactly (default: %(default)s)",
    )
    large.add_argument(
        "--tile", type=int, help="side in pixels (default: 1.5 times the model's own, 768 for 512)"
    )
    large.add_argument(
        "--overlap", type=int, help="of tiles, in pixels (default: a sixth of a tile)"
    )


def add_prior(command) -> None:
    prior = command.add_argument_group("prior")
    prior.add_argument(
        "--prior",
        default="naclip",
        help="clip, maskclip, sclip, naclip (default), clearclip, gem, cliper or proxyclip",
    )
    prior.add_argument(
        "--prior-resolution", type=int, help="short side for CLIP (default: 1.5 times its own)"
    )
    prior.add_argument(
        "--prior-window", type=int, help="side of CLIP's sliding window (default: none)"
    )
    prior.add_argument("--prior-stride", type=int, help="step of the window (default: half of it)")
    prior.add_argument(
        "--prior-proxy", metavar="ID|DIR", help="the DINO of proxyclip (default: ViT-B/8)"
    )
    prior.add_argument("--logit-scale", type=float, default=40.0, help="default: 40")


def add_config(command) -> None:
    graph = command.add_argument_group("graph stage")
    for field in dataclasses.fields(NerveConfig):
        graph.add_argument(
            "--" + field.name.replace("_", "-"),
            type=field.type,
            default=field.default,
            choices=NORMALIZATIONS if field.name == "normalization" else None,
            help=f"{CONFIG_HELP[field.name]} (default: %(default)s)",
        )


def config_of(options) -> NerveConfig:
    return NerveConfig(
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(NerveConfig)}
    )
