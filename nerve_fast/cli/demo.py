"""The command ``demo``: invented scenes, segmented with the models that ship."""

import os
from pathlib import Path

from nerve_fast.cli import flags
from nerve_fast.errors import InputError
from nerve_fast.utils.files import prepare_folder


def add_demo(commands) -> None:
    """Add ``demo`` to the subparsers of the command line."""
    command = commands.add_parser(
        "demo",
        help="segment 50 invented scenes with the shipped models, and say how well",
    )
    command.set_defaults(run=_run)
    command.add_argument(
        "-o", "--output", type=Path, default=Path("demo"), metavar="DIR", help="default: demo"
    )
    command.add_argument(
        "--first-seed", type=flags.seed, help="of the scenes (default: 1000000, the held-out ones)"
    )
    command.add_argument("--scenes", type=int, default=50, help="held-out scenes (default: 50)")


def _run(options) -> int:
    if options.scenes < 1:
        raise InputError(f"--scenes is {options.scenes}; expected 1 or more")
    prepare_folder(options.output)

    from nerve_fast.backbones.loading import hide_loading_bars
    from nerve_fast.evaluation.demo import run
    from nerve_fast.pipeline import NervePipeline
    from nerve_fast.tiny.scenes import HELD_OUT_SEED

    hide_loading_bars()
    pipe = NervePipeline.from_pretrained("tiny", device="cpu")
    first = HELD_OUT_SEED if options.first_seed is None else options.first_seed
    scores = run(pipe, options.output, scenes=options.scenes, first_seed=first)
    kind = "held-out scenes" if first >= HELD_OUT_SEED else f"scenes from seed {first}"
    print(f"mIoU on {options.scenes} {kind}, default settings")
    prior = scores["prior"]
    for method, score in scores.items():
        gain = "" if method == "prior" else f"  {100 * (score - prior):+.1f}"
        print(f"  {method:34}{100 * score:5.1f}{gain}")
    print(f"pictures: {options.output}{os.sep}scene-*.png")
    return 0
