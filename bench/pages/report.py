"""``python -m bench.pages.report``: docs/benchmarks.md, its pictures and the README's table.

Everything comes from the JSON files of ``bench/results/``: no figure is typed by hand.
"""

import argparse
import sys
from pathlib import Path

from nerve_fast.bench.harness.results import FOLDER, load, own, problems, rows_of
from nerve_fast.bench.harness.row import Row
from nerve_fast.bench.harness.words import bytes_in_words, in_words
from nerve_fast.bench.pages import bars, tables
from nerve_fast.errors import InputError
from nerve_fast.utils.files import written_whole

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- written by `python -m bench.pages.report` -->", "<!-- as far as here -->"

INTRODUCTION = """\
# Benchmarks

Written by `python -m bench.pages.report` from the JSON files in
[`bench/results/`](../bench/results), one a machine, each left by `nerve-fast bench` (on a GPU
`python -m bench.gpu`) in one run. Nothing here is typed by hand.

Nothing is timed before its result has been compared with float64: *error* is
`‖out − truth‖ / ‖truth‖`, held to 1e-5 in float32, 2e-3 in float16 and 1e-2 in bfloat16 unless a
row names another bound (the pipeline's is relative to the reference backend on the same networks);
a number of tokens in brackets is the size it was compared at where the timed one was too large for
that. Times are medians of warm rounds, the span is that of the middle 60 %. What takes over a
second is timed once: in its *second run*, or where it takes over a minute, and in older results,
in its *first run*, which waits for memory too. *Allocated* is the peak of what torch allocated
beyond the inputs (other libraries' memory is not in it), *resident* that of the whole process.
*Floor* is the share of what this machine could do at most: the larger of operations over the rate
of matrix products and bytes over the bandwidth, both measured beside the rest, for the least work
known. *× ours* is a row's time over that of the way `auto` takes. What is as always is left out:
K = 21 labels, L = 10 steps, H = 5 heads of D = 64, a 3 × 3 window.
"""


def render(documents: dict[str, dict], pictures: dict[str, dict[str, Path]]) -> str:
    """The page.

    Args:
        documents: results by the name of their file.
        pictures: by the same name and their title.
    """
    parts = [INTRODUCTION]
    for slug, document in documents.items():
        parts.append(_of_machine(document, pictures[slug]))
    return "\n".join(parts)


def _of_machine(document: dict, pictures: dict[str, Path]) -> str:
    rows = rows_of(document)
    machine = document["machine"]
    parts = [f"## {machine['device']}, {machine['threads']} threads\n", _about(document)]
    if machine["interpreted"]:
        parts.append("Kernels were interpreted: the times mean nothing.\n")
    parts += ["### Bars\n", _bars(document), "### Where we lose\n", _losses(document, rows)]
    parts += [f"![{title}](plots/{path.name})\n" for title, path in pictures.items()]
    operations = dict.fromkeys(row.operation for row in rows)
    for operation in operations:
        own_rows = [row for row in rows if row.operation == operation]
        parts += [f"### {operation[0].upper()}{operation[1:]}\n", tables.table(own_rows)]
    for title, text in (
        ("How cost grows", tables.growth(rows)),
        ("Where the pipeline's time goes", tables.steps_table(rows)),
        ("To begin with", tables.startup(document)),
        ("First calls", tables.first_calls(rows)),
        ("Not measured", _skipped(document)),
    ):
        if text:
            parts += [f"### {title}\n", text]
    return "\n".join(parts)


def _about(document: dict) -> str:
    machine, ceilings = document["machine"], document["ceilings"]
    rates = ", ".join(
        f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in ceilings["matrix_rates"].items()
    )
    cuda = f", CUDA {machine['cuda']}" if machine["cuda"] else ""
    cached = ceilings["cache_bandwidth"]
    cached = f" ({cached / 1e9:,.0f} GB/s in its cache)" if cached else ""
    own = ceilings.get("own_rates", {}).get("bfloat16")
    taken = "It multiplies bfloat16 in hardware."
    if not machine["bfloat16_products"]:
        taken = "It does not multiply bfloat16 in hardware."
        if own:
            taken = (
                f"Its instructions for bfloat16 come to {own / 1e9:,.0f} GFLOP/s and are not taken."
            )
    return (
        f"{machine['system']}, {machine['cores']} cores, {bytes_in_words(machine['memory'])}, "
        f"Python {machine['python']}, torch {machine['torch']}, triton {machine['triton']}{cuda}; "
        f"commit {machine['commit'] or 'unknown'}, {machine['date'][:10]}; tier "
        f"{document['tier']}. Ceilings measured in the run: {ceilings['bandwidth'] / 1e9:,.0f} "
        f"GB/s{cached}, {rates}. {taken}\n"
    )


def _bars(document: dict) -> str:
    judged = bars.judge(document)
    lines = ["| | measured | bar | |", "|---|---|---|---|"]
    for bar in judged:
        verdict = {None: "not measured", True: "met", False: "**missed**"}[bar.met]
        value = "–" if bar.value is None else f"{bar.value:.3g}"
        lines.append(f"| {bar.what} | {value} | {bar.relation} {bar.bar:g} | {verdict} |")
    return "\n".join(lines) + "\n"


def _losses(document: dict, rows: list[Row]) -> str:
    """Plain words: bars missed, and everybody who is faster."""
    lines = [
        f"- {bar.what}: {bar.value:.3g}, where {bar.relation} {bar.bar:g} was wanted."
        for bar in bars.judge(document)
        if bar.met is False
    ]
    for rows_of_problem in problems([row for row in rows if row.seconds]):
        mine = own(rows_of_problem)
        for row in rows_of_problem if mine else ():
            if not row.ours and row.high < mine.low:
                note = f" ({row.note})" if row.note else ""
                lines.append(
                    f"- {row.operation}, {in_words(row.setting)}: {row.contender}{note} takes "
                    f"{row.seconds / mine.seconds:.2f} of our time."
                )
    lines += [
        f"- {row.operation}, {row.contender}, {in_words(row.setting)}: {row.note}."
        for row in rows
        if row.failed
    ]
    return "\n".join(lines or ["Nowhere in this run."]) + "\n"


def _skipped(document: dict) -> str:
    return "".join(f"- {what}\n" for what in document.get("skipped", []))


FASTER, MEMORY = "times faster than", "share of its memory"
"""What bars are of; of the same problem they stand side by side in the README."""


def readme_table(documents: dict[str, dict]) -> str:
    """How much faster and smaller than others, on the machine that was measured last."""
    document = max(documents.values(), key=lambda one: one["machine"]["date"])
    machine = document["machine"]
    lines = [
        f"| {machine['device']}, {machine['threads']} threads, torch {machine['torch']} | "
        "times faster | of its memory |",
        "|---|---|---|",
    ]
    judged = {bar.what: bar for bar in bars.judge(document) if bar.met is not None}
    for what, bar in judged.items():
        problem, _, of = what.rpartition(": ")
        if not of.startswith(FASTER):
            continue
        other = of.removeprefix(f"{FASTER} ")
        memory = judged.get(f"{problem}: {MEMORY}")
        named = problem if other == "the reference" else f"{problem}, against {other}"
        lines.append(f"| {named} | {_figure(bar)} | {_figure(memory) if memory else ''} |")
    return "\n".join([*lines, ""])


def _figure(bar: bars.Judged) -> str:
    return f"{bar.value:.3g}{' **missed**' * (not bar.met)}"


def with_table(readme: str, table: str) -> str:
    """The README with the part between the marks replaced."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


def write(results: Path, root: Path) -> list[Path]:
    """Write the page, its pictures and the README's table; returns what was written."""
    try:
        from nerve_fast.bench.pages.plots import draw
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; the extra 'bench' brings it") from error

    paths = [path for path in sorted(results.glob("*.json")) if ".unfinished" not in path.name]
    if not paths:
        raise InputError(f"{results}: no results; `nerve-fast bench` leaves some")
    documents = {path.stem: load(path) for path in paths}
    plots = root / "docs" / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    pictures = {slug: draw(document, plots, slug) for slug, document in documents.items()}
    readme = root / "README.md"
    texts = {
        root / "docs" / "benchmarks.md": render(documents, pictures),
        readme: with_table(readme.read_text(encoding="utf-8"), readme_table(documents)),
    }
    for path, text in texts.items():
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [*texts, *(path for found in pictures.values() for path in found.values())]


def main() -> int:
    argparse.ArgumentParser(prog="python -m bench.pages.report", description=__doc__).parse_args()
    try:
        for path in write(FOLDER, ROOT):
            print(path.relative_to(ROOT))
    except InputError as error:
        print(f"bench.pages.report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
