"""The command ``train-tiny``: the models that ship, made again.

It is for those who work on the package, and not in the list of ``nerve-fast --help``.
"""

from pathlib import Path


def add_train_tiny(commands) -> None:
    """Add ``train-tiny`` to the subparsers of the command line."""
    # A command without a help text is not listed.
    command = commands.add_parser(
        "train-tiny", description="Trains the models that ship on invented scenes, on the CPU."
    )
    command.set_defaults(run=_run)
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write; must not exist"
    )
    command.add_argument("--seed", type=int, default=0, help="default: 0")


def _run(options) -> int:
    # transformers and diffusers take seconds to import; mistakes above should not.
    from nerve_fast.tiny.train import train

    train(options.out, seed=options.seed)
    return 0
