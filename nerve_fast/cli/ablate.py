"""The command ``ablate``: one thing at a time varied on a data set."""

import argparse
import shlex
import sys
from pathlib import Path

from nerve_fast.cli import flags
from nerve_fast.cli.messages import notes
from nerve_fast.evaluation.ablation.ablations import ABLATIONS


def add_ablate(commands) -> None:
    """Add ``ablate`` to the subparsers of the command line."""
    command = commands.add_parser(
        "ablate",
        help="vary one thing at a time on a data set, beside the slides' tables",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Computes features of each image once and keeps them; each setting only walks. "
        "The same command\nagain goes on where a run stopped.\n\n"
        + "\n".join(f"  {name:15}{ablation.title}" for name, ablation in ABLATIONS.items()),
    )
    command.set_defaults(run=_run)
    command.add_argument("names", nargs="+", metavar="NAME", help=", ".join(ABLATIONS))
    flags.add_dataset(command)
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
    flags.add_changes(command)
    flags.add_models(command, resolution=False)
    flags.add_config(command)


def _run(options) -> int:
    config = flags.config_of(options)
    # transformers and diffusers take seconds to import; mistakes above should not.
    from nerve_fast import evaluation

    settings = evaluation.AblationSettings(
        **flags.method_of(options),
        config=config,
        names=options.names,
        cache_size=options.cache_size,
        document=options.document,
        command=shlex.join(["nerve-fast", *sys.argv[1:]]),
    )
    with notes():
        results = evaluation.ablate(settings, progress=True)
    from nerve_fast.evaluation.ablation.page import table

    for name, rows in results.figures["ablations"].items():
        print(f"{ABLATIONS[name].title}\n\n{table(ABLATIONS[name], rows)}")
    failed = results.figures["failed"]
    print(
        f"{results.figures['images']} images, written to {results.folder}"
        + f", {failed} could not be evaluated" * (failed > 0)
    )
    return 2 if failed else 0
