"""The command line: ``nerve-fast COMMAND``, each command in a file of its own."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata

import torch

from nerve_fast.cli.ablate import add_ablate
from nerve_fast.cli.bench import add_bench
from nerve_fast.cli.data import add_data
from nerve_fast.cli.demo import add_demo
from nerve_fast.cli.doctor import add_doctor
from nerve_fast.cli.evaluate import add_evaluate
from nerve_fast.cli.plan import add_plan
from nerve_fast.cli.report import add_report
from nerve_fast.cli.segment import add_segment
from nerve_fast.cli.tune import add_tune
from nerve_fast.errors import InputError, SettingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, or 2 after a mistake that a person can mend."""
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
        # Now, while a closed pipe can still be caught.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # `nerve-fast doctor | head -1`: the reader has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except InputError as error:
        said = error.with_flags() if isinstance(error, SettingError) else str(error)
        print(f"nerve-fast: {said}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        print(
            "nerve-fast: out of memory; a smaller --resolution needs less, and so do fewer labels",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("nerve-fast: interrupted", file=sys.stderr)
        return 130


def _is_out_of_memory(error: Exception) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "DefaultCPUAllocator" in str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nerve-fast",
        description="Training-free open-vocabulary segmentation: words in, a label a pixel out.",
    )
    parser.add_argument("--version", action="version", version=metadata.version("nerve-fast"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_segment(commands)
    add_data(commands)
    add_evaluate(commands)
    add_ablate(commands)
    add_report(commands)
    add_plan(commands)
    add_demo(commands)
    add_tune(commands)
    add_bench(commands)
    add_doctor(commands)
    return parser
