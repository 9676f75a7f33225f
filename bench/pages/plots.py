"""Pictures of a run's results."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from nerve_fast.bench.harness.results import own, problems, rows_of
from nerve_fast.bench.harness.row import Row
from nerve_fast.bench.harness.words import in_words
from nerve_fast.utils.files import written_whole

SHOWN = ("softmax", "shift")
"""Normalizations that are drawn: one of each cost, N² and N."""
COLOURS = {
    "reference": "#7f7f7f",
    "torch.compile": "#bcbd22",
    "SDPA": "#8c564b",
    "flex_attention": "#e377c2",
    "blocked dense": "#1f77b4",
    "blocked streaming": "#2ca02c",
    "blocked factorized": "#d62728",
    "triton dense": "#17becf",
    "triton streaming": "#9467bd",
    "triton factorized": "#ff7f0e",
}


def draw(document: dict, folder: Path, slug: str) -> dict[str, Path]:
    """Every picture that the results have figures for, by its title."""
    rows = [row for row in rows_of(document) if row.seconds]
    machine = document["machine"]["device"]
    found = {}
    for name, title, painter in (
        ("growth", "Time and memory of a walk against the number of tokens", _growth),
        ("roofline", "Against what this machine can do at most", _roofline),
        ("speed-up", "Times slower than nerve-fast", _speed_up),
        ("pipeline", "Where the pipeline's time goes", _pipeline),
    ):
        figure = painter(rows, document)
        if figure is None:
            continue
        figure.suptitle(f"{title}: {machine}", fontsize=11)
        path = folder / f"{slug}-{name}.png"
        with written_whole(path) as temporary:
            figure.savefig(temporary, dpi=110, metadata={"Software": None})
        plt.close(figure)
        found[title] = path
    return found


def _growth(rows: list[Row], document: dict):
    """Seconds and bytes against N, both axes in powers of ten."""
    dtype = "bfloat16" if document["machine"]["kind"] == "cuda" else "float32"
    wanted = {"labels": 21, "steps": 10, "heads": 5, "dtype": dtype}
    walks = [
        row for row in rows if row.operation == "walk" and wanted.items() <= row.setting.items()
    ]
    if not walks:
        return None
    figure, axes = plt.subplots(2, 2, figsize=(10, 8), layout="constrained", sharex=True)
    for column, normalization in enumerate(SHOWN):
        lines: dict[str, list[Row]] = {}
        for row in walks:
            if row.setting["normalization"] == normalization:
                lines.setdefault(row.contender, []).append(row)
        for contender, points in sorted(lines.items()):
            points.sort(key=lambda row: row.setting["tokens"])
            tokens = [row.setting["tokens"] for row in points]
            style = {"color": COLOURS.get(contender), "marker": "o", "markersize": 4}
            style["linewidth"] = 2 if points[0].ours else 1
            times = [row.seconds for row in points]
            axes[0, column].loglog(tokens, times, label=contender, **style)
            axes[1, column].loglog(tokens, [row.resident for row in points], **style)
        axes[0, column].set_title(
            f"{normalization}, {dtype}, K = 21, L = 10, H·D = 320", fontsize=9
        )
        axes[0, column].legend(fontsize=8)
        axes[1, column].set_xlabel("tokens N")
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak of resident bytes beyond the inputs")
    for axis in axes.flat:
        axis.grid(True, which="major", alpha=0.3)
    return figure


def _roofline(rows: list[Row], document: dict):
    """Operations a second against operations a byte, of the best way known to do each problem."""
    ceilings = document["ceilings"]
    bandwidth, rates = ceilings["bandwidth"], ceilings["matrix_rates"]
    if not bandwidth:
        return None
    figure, axis = plt.subplots(figsize=(9, 6), layout="constrained")
    points: dict[str, list[tuple[float, float]]] = {}
    for rows_of_problem in problems(rows):
        mine = own(rows_of_problem)
        if mine and mine.operations:
            at = (mine.operations / mine.moved, mine.operations / mine.seconds)
            points.setdefault(mine.operation, []).append(at)
    if not points:
        return None
    intensities = [x for operation in points.values() for x, _ in operation]
    low, high = min(intensities) / 2, max(intensities) * 2
    grid = [low * (high / low) ** (i / 100) for i in range(101)]
    for dtype, dashes in (("float32", "-"), ("bfloat16", "--")):
        roof = [min(rates[dtype], bandwidth * x) / 1e9 for x in grid]
        axis.loglog(grid, roof, "k" + dashes, linewidth=1, label=f"ceiling, {dtype}")
    for operation, found in sorted(points.items()):
        x, y = zip(*found, strict=True)
        axis.loglog(x, [value / 1e9 for value in y], "o", label=operation, alpha=0.8)
    axis.set_xlabel("operations a byte, at the least work known")
    axis.set_ylabel("10⁹ operations a second, of the least work known")
    axis.grid(True, which="major", alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def _speed_up(rows: list[Row], document: dict):
    """Bars: how many times longer each opponent takes, at the largest size it was measured at."""
    largest: dict[tuple[str, str, str], tuple[float, Row]] = {}
    for rows_of_problem in problems(rows):
        mine = own(rows_of_problem)
        for row in rows_of_problem if mine else ():
            if not row.ours:
                key = (row.operation, row.contender, row.setting["dtype"])
                known = largest.get(key)
                if known is None or known[1].setting["tokens"] <= row.setting["tokens"]:
                    largest[key] = (row.seconds / mine.seconds, row)
    if not largest:
        return None
    entries = sorted(largest.values(), key=lambda entry: (entry[1].operation, entry[0]))
    figure, axis = plt.subplots(figsize=(10, 0.24 * len(entries) + 1.5), layout="constrained")
    names = [f"{row.operation}: {row.contender}, {in_words(row.setting)}" for _, row in entries]
    ratios = [ratio for ratio, _ in entries]
    colours = ["#2ca02c" if ratio >= 1 else "#d62728" for ratio in ratios]
    axis.barh(range(len(entries)), [ratio - 1 for ratio in ratios], left=1, color=colours)
    axis.set_xscale("log")
    axis.set_yticks(range(len(entries)), names, fontsize=7)
    axis.invert_yaxis()
    axis.margins(y=0.01)
    for index, ratio in enumerate(ratios):
        axis.text(max(ratio, 1) * 1.05, index, f"{ratio:.3g}", va="center", fontsize=7)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xlabel("its time over ours (1: as fast; red: faster than ours)")
    axis.set_xlim(right=max(ratios) * 2)
    return figure


def _pipeline(rows: list[Row], document: dict):
    """Stacked bars of the seconds of each step."""
    found = [row for row in rows if row.parts]
    if not found:
        return None
    figure, axis = plt.subplots(figsize=(9, 1 + 0.7 * len(found)), layout="constrained")
    steps = list(dict.fromkeys(step for row in found for step in row.parts))
    left = [0.0] * len(found)
    for step in steps:
        widths = [row.parts.get(step, 0) for row in found]
        axis.barh(range(len(found)), widths, left=left, label=step)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    names = [f"{row.contender}\n{_pixels(row)}" for row in found]
    axis.set_yticks(range(len(found)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    axis.legend(fontsize=8, ncols=len(steps), loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def _pixels(row: Row) -> str:
    side = 8 * math.isqrt(row.setting["tokens"])
    return f"{side} × {side} pixels, {row.setting['dtype']}"
