"""The command ``plan``: how a walk would be carried out, and why."""

from nerve_fast.cli import flags
from nerve_fast.dispatch import BACKEND_NAMES, ROUTES, pick_device, plan


def add_plan(commands) -> None:
    """Add ``plan`` to the subparsers of the command line."""
    command = commands.add_parser(
        "plan",
        help="say how a walk would be carried out, and why",
    )
    command.set_defaults(run=_run)
    command.add_argument("--tokens", type=int, required=True, help="N, height times width")
    command.add_argument("--labels", type=int, required=True, help="K")
    command.add_argument("--heads", type=int, default=5, help="H (default: 5)")
    command.add_argument("--head-dim", type=int, default=64, help="D (default: 64)")
    command.add_argument("--device", default="cpu", help="default: cpu")
    command.add_argument(
        "--dtype", choices=flags.DTYPES, default="float32", help="default: float32"
    )
    command.add_argument("--backend", choices=BACKEND_NAMES, default="auto", help="default: auto")
    command.add_argument("--route", choices=ROUTES, default="auto", help="default: auto")
    command.add_argument(
        "--max-memory", help='such as "6GB" (default: four fifths of what is free)'
    )
    flags.add_config(command)


def _run(options) -> int:
    chosen = plan(
        (options.heads, options.tokens, options.head_dim),
        options.labels,
        config=flags.config_of(options),
        device=pick_device(options.device),
        dtype=flags.DTYPES[options.dtype],
        backend=options.backend,
        route=options.route,
        max_memory=options.max_memory,
    )
    print(chosen)
    print(chosen.table())
    print(f"times: {chosen.rates}")
    return 0
