"""The command ``plan``: how a walk would be carried out, and why."""

from nerve_fast.cli import flags
from nerve_fast.dispatch import BACKEND_NAMES, ROUTES, pick_device, plan
from nerve_fast.dispatch.costs import exchange


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
    command.add_argument(
        "--grid", type=int, nargs=2, metavar=("H", "W"), help="of the tokens, H times W of them"
    )
    command.add_argument(
        "--processes",
        type=int,
        default=1,
        help="that share the walk, for which --grid is needed (default: 1)",
    )
    command.add_argument(
        "--weights-given",
        action="store_true",
        help="head weights are known, so that no entropies of all rows are computed",
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
        weights_given=options.weights_given,
        grid=options.grid and tuple(options.grid),
        processes=options.processes,
    )
    print(chosen)
    print(chosen.table())
    print(f"times: {chosen.rates}")
    if options.processes > 1:
        print(f"of {options.processes} processes: {exchange(chosen.problem, chosen.route)}")
    return 0
