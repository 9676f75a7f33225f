"""The flags of ``ablate``."""

import argparse
import importlib.util
import os
import shlex
import sys
from pathlib import Path

from nerve_fast.cli import flags
from nerve_fast.cli.evaluate import add_changes, add_dataset
from nerve_fast.errors import InputError
from nerve_fast.evaluation.ablation.ablations import ABLATIONS, Setting, refuse_doubles
from nerve_fast.utils.units import parse_bytes


def add_ablate(commands) -> None:
    command = commands.add_parser(
        "ablate",
        help="vary one thing at a time on a data set, beside the slides' tables",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Computes features of each image once and keeps them; each setting only walks. "
        "The same command\nagain goes on where a run stopped.\n\n"
        + "\n".join(f"  {name:15}{ablation.title}" for name, ablation in ABLATIONS.items()),
    )
    # What is varied is the walk, whatever the preset has.
    command.set_defaults(run=_ablate, refiner="walk")
    command.add_argument("names", nargs="+", metavar="NAME", help=", ".join(ABLATIONS))
    add_dataset(command)
    command.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="default: ablations/DATASET-PRESET"
    )
    command.add_argument(
        "--cache-size",
        default="20GB",
        metavar="BYTES",
        help="that DIR/features may take; what is beyond is computed each time (default: 20GB)",
    )
    command.add_argument(
        "--document",
        type=Path,
        metavar="FILE",
        help="also write the tables there, and the plots to plots/ beside it",
    )
    add_changes(command)
    flags.add_models(command, resolution=False)
    flags.add_config(command)


def _ablate(options) -> int:
    config = flags.config_of(options)
    for name in options.names:
        if name not in ABLATIONS:
            raise InputError(f"ablation is {name!r}; expected some of {', '.join(ABLATIONS)}")
        refuse_doubles(name, Setting(config, options.timestep))
    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit is {options.limit}; expected 1 or more")
    if os.environ.get("WORLD_SIZE", "") not in ("", "1"):
        raise InputError(
            f"the environment says WORLD_SIZE={os.environ['WORLD_SIZE']}; expected 1, as ablate "
            "runs in one process: start it without accelerate launch or torchrun"
        )
    parse_bytes(options.cache_size)
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plots are drawn with matplotlib: pip install 'nerve-fast[bench]'")
    options.command = shlex.join(["nerve-fast", *sys.argv[1:]])
    # transformers and diffusers take seconds to import; mistakes above should not.
    from nerve_fast.evaluation.ablation.run import ablate

    return ablate(options, config)
