"""The tables of docs/benchmarks.md, each from the rows of one run."""

import math

import torch

from nerve_fast.bench.harness.results import own, problems
from nerve_fast.bench.harness.row import Row
from nerve_fast.bench.harness.words import bytes_in_words, in_words, seconds_in_words
from nerve_fast.numerics import ERROR_BOUNDS


def table(rows: list[Row]) -> str:
    lines = [
        "| problem | who | time | middle 60 % | × ours | of the floor | error | allocated | "
        "resident | |",
        "|---" * 10 + "|",
    ]
    for rows_of_problem in problems(rows):
        mine = own(rows_of_problem)
        for index, row in enumerate(rows_of_problem):
            cells = [in_words(row.setting) if index == 0 else "", _who(row)]
            if row.seconds is None:
                cells += ["–"] * 7 + [row.note]
            else:
                attention = row.attention and f"by torch's {row.attention} attention"
                notes = (row.note, attention, "replayed as a graph" * row.replayed)
                span = f"{seconds_in_words(row.low)} – {seconds_in_words(row.high)}"
                if row.rounds == 1:
                    span = "first run" if row.seconds == row.first_seconds else "second run"
                cells += [
                    seconds_in_words(row.seconds),
                    span,
                    f"{row.seconds / mine.seconds:.2f}" if mine else "–",
                    f"{row.floor / row.seconds:.1%}" if row.floor else "–",
                    _error(row),
                    bytes_in_words(row.allocated),
                    bytes_in_words(row.resident),
                    "; ".join(filter(None, notes)),
                ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _who(row: Row) -> str:
    name = f"**{row.contender}**" if row.ours else row.contender
    return name + " ← auto" * row.taken


def _error(row: Row) -> str:
    at = "" if row.error_tokens == row.setting["tokens"] else f" ({row.error_tokens:,})"
    usual = row.bound == ERROR_BOUNDS[getattr(torch, row.setting["dtype"])]
    return f"{row.error:.0e}{at}" + f", bound {row.bound:.0e}" * (not usual)


def growth(rows: list[Row]) -> str:
    """Exponents fitted to what was measured while one size varied."""
    lines = ["| who | of | exponent | from | to |", "|---|---|---|---|---|"]
    for name, letter, least in (("tokens", "N", 4096), ("labels", "K", 0), ("steps", "L", 0)):
        series: dict[tuple, list[Row]] = {}
        for row in rows:
            if row.operation == "walk" and row.seconds and row.setting[name] >= least:
                rest = tuple(sorted((k, v) for k, v in row.setting.items() if k != name))
                series.setdefault((row.contender, rest), []).append(row)
        for (contender, _), points in series.items():
            sizes = sorted(row.setting[name] for row in points)
            if len(points) < 2:
                continue
            slope = exponent([(row.setting[name], row.seconds) for row in points])
            who = f"{contender}, {in_words(points[0].setting, without=(name,))}"
            lines.append(f"| {who} | {letter} | {slope:.2f} | {sizes[0]:,} | {sizes[-1]:,} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def exponent(points: list[tuple[float, float]]) -> float:
    """``b`` of the line through ``log y = a + b log x``, least squares."""
    x, y = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def steps_table(rows: list[Row]) -> str:
    rows = [row for row in rows if row.parts]
    if not rows:
        return ""
    steps = list(dict.fromkeys(step for row in rows for step in row.parts))
    lines = ["| | " + " | ".join(steps) + " | the rest |", "|---" * (len(steps) + 2) + "|"]
    for row in rows:
        rest = max(row.seconds - sum(row.parts.values()), 0)
        cells = [seconds_in_words(row.parts.get(step)) for step in steps]
        name = f"{row.contender}, {in_words(row.setting)}"
        lines.append(f"| {name} | " + " | ".join([*cells, seconds_in_words(rest)]) + " |")
    lines += [
        "",
        "Steps are those of a run under the profiler, the rest is what the timed run took more.",
    ]
    return "\n".join(lines) + "\n"


def startup(document: dict) -> str:
    lines = ["| a fresh process | time | middle 60 % |", "|---|---|---|"]
    for row in document.get("startup", []):
        span = f"{seconds_in_words(row['low'])} – {seconds_in_words(row['high'])}"
        lines.append(f"| {row['what']} | {seconds_in_words(row['seconds'])} | {span} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def first_calls(rows: list[Row]) -> str:
    """The slowest first call of each who compiles."""
    slowest: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.compiled and row.first_seconds:
            known = slowest.setdefault((row.operation, row.contender), row)
            if known.first_seconds < row.first_seconds:
                slowest[row.operation, row.contender] = row
    lines = ["| compiled | first call | then |", "|---|---|---|"]
    lines += [
        f"| {row.operation}, {row.contender}, {in_words(row.setting)} | "
        f"{seconds_in_words(row.first_seconds)} | {seconds_in_words(row.seconds)} |"
        for row in slowest.values()
    ]
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""
