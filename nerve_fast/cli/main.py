"""The command line: ``nerve-fast COMMAND``, each command in a file of its own."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata

import torch

from nerve_fast.cli.ablate import add_ablate
from nerve_fast.cli.app import add_app
from nerve_fast.cli.bench import add_bench
from nerve_fast.cli.data import add_data
from nerve_fast.cli.demo import add_demo
from nerve_fast.cli.doctor import add_doctor
from nerve_fast.cli.evaluate import add_evaluate
from nerve_fast.cli.map import add_map
from nerve_fast.cli.plan import add_plan
from nerve_fast.cli.report import add_report
from nerve_fast.cli.segment import add_segment
from nerve_fast.cli.streams import steady
from nerve_fast.cli.tune import add_tune
from nerve_fast.errors import InputError, SettingError
from nerve_fast.utils.text import plain


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0, 2 after a mistake that a person can mend, or 130 after an interruption.
    """
    # Large tensors in large pages: new ones cost less. torch looks at it with its first tensor.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with steady() as stdout:
        code = _main(arguments)
        stdout.flush()
        # `nerve-fast doctor | head -1`: the reader has what it wanted.
        if stdout.error is not None and not isinstance(stdout.error, BrokenPipeError):
            _say(f"what it says cannot be written: {stdout.error.strerror or stdout.error}")
            return code or 2
        return code


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except InputError as error:
        _say(error.with_flags() if isinstance(error, SettingError) else str(error))
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _say("out of memory; a smaller --resolution needs less, and so do fewer labels")
        return 2
    except KeyboardInterrupt:
        _say("interrupted")
        return 130


def _say(text: str) -> None:
    print(f"nerve-fast: {plain(text)}", file=sys.stderr)


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
    add_map(commands)
    add_app(commands)
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
