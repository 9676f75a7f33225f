"""The command ``bench``: every operation measured beside what people would use instead."""

from pathlib import Path

import torch

from nerve_fast.dispatch import pick_device
from nerve_fast.errors import InputError


def add_bench(commands) -> None:
    """Add ``bench`` to the subparsers of the command line."""
    command = commands.add_parser(
        "bench",
        help="measure every operation here, beside what people would use instead",
        description="Checks each against float64, then times it and its opponents side by side.",
    )
    command.set_defaults(run=_run)
    tier = command.add_mutually_exclusive_group()
    tier.add_argument("--quick", action="store_true", help="a minute or two, small sizes")
    tier.add_argument("--full", action="store_true", help="an hour or so, large sizes too")
    command.add_argument("--op", nargs="+", metavar="NAME", help='such as walk, "head entropy"')
    command.add_argument("--tokens", type=int, nargs="+", help="N, instead of the usual sizes")
    command.add_argument("--device", help="cpu, cuda (default: cuda where it is)")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="JSON (default, of a whole run: bench/results/MACHINE.json)",
    )
    command.add_argument(
        "--update",
        action="store_true",
        help="with --op or --tokens: rows take the place of those in bench/results/MACHINE.json",
    )
    command.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("A.json", "B.json"),
        help="measure nothing; say what changed between two runs",
    )


def _run(options) -> int:
    from nerve_fast.bench.harness.results import load

    if options.compare:
        from nerve_fast.bench.pages.compare import compare

        print("\n".join(compare(*(load(path) for path in options.compare))))
        return 0
    for tokens in options.tokens or ():
        if tokens < 16:
            raise InputError(f"--tokens is {tokens}; expected 16 or more")
    if options.update and (options.output or not (options.op or options.tokens)):
        raise InputError("--update goes with --op or --tokens, and without --output")
    from nerve_fast.bench.harness.run import bench

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tier = "quick" if options.quick else "full" if options.full else "default"
    return bench(
        pick_device(device), tier, options.op, options.tokens, options.output, options.update
    )
