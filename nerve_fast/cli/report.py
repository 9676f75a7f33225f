"""The flags of ``report``."""

from pathlib import Path


def add_report(commands) -> None:
    """Add ``report`` to the subparsers of the command line."""
    command = commands.add_parser(
        "report",
        help="the slides' Table 1, published and measured side by side",
        description="Prints Markdown: results of `nerve-fast evaluate` beside the published "
        "figures, what they differ in from the methods' settings, and the command for each row of "
        "which there is no result.",
    )
    command.set_defaults(run=_run)
    command.add_argument("results", nargs="*", type=Path, metavar="RESULTS.json")
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write it there")


def _run(options) -> int:
    # diffusers takes seconds to import; mistakes above should not.
    from nerve_fast.evaluation.table import report

    print(report(options.results, options.output), end="")
    return 0
