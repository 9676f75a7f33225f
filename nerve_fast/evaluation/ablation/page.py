"""Ablations as a page: a table and a plot each, the slides' figures beside what was measured."""

import math
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from nerve_fast.evaluation.ablation.ablations import ABLATIONS, Ablation
from nerve_fast.evaluation.differences import is_tiny
from nerve_fast.imaging.visualize import PNG_MARK, SOFTWARE
from nerve_fast.utils.files import prepare_folder, refuse_foreign, written_whole
from nerve_fast.utils.text import code, markdown

COLOURS = {"voc21": "#1f77b4", "pc60": "#2ca02c", "coco-object": "#d62728"}
MARKERS = {"voc21": "s", "pc60": "^", "coco-object": "D"}
NAMES = {"voc21": "VOC21", "pc60": "PC60", "coco-object": "COCO-Object"}

TITLE = "# Ablations\n"
"""Of the page."""

COLUMNS = """\
*mIoU* in %. *To the default* in points, and in brackets the middle 95 % of that difference over
images drawn again with replacement (paired, 1000 times): where it holds 0, another such choice of
images might have said otherwise. *Slides* are the published figures, and in brackets their own
difference to the slides' default; they are of other images and other models, and only the
direction can be compared unless the data set is the same.
"""


def refuse_foreign_page(names: Iterable[str], page: Path, pictures: Path, prefix: str = "") -> None:
    """Raise where :func:`write_page` would overwrite what it did not write.

    Args:
        names: of the ablations.
        page, pictures, prefix: as for :func:`write_page`.

    Raises:
        InputError: the page or a plot is there, and was not written by it: the page has another
            title, the plot is not named by the page and does not say that it was made here.
    """
    refuse_foreign(page, TITLE.encode())
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    for name in names:
        path = plot_of(name, pictures, prefix)
        if f"]({path.relative_to(page.parent).as_posix()})" not in text:
            refuse_foreign(path, PNG_MARK)


def plot_of(name: str, pictures: Path, prefix: str) -> Path:
    """The file of an ablation's plot."""
    return pictures / f"{prefix}{name}.png"


def write_page(document: dict, page: Path, pictures: Path, prefix: str = "") -> None:
    """Write the page of a run, and its plots.

    Args:
        document: as ``results.json`` holds it, but for ``nan`` where that has ``null``.
        page: the Markdown file.
        pictures: the folder of the plots, beside the page or below it.
        prefix: of the plots' names.

    Raises:
        InputError: a place cannot be written.
    """
    prepare_folder(page.parent)
    prepare_folder(pictures)
    parts = [TITLE, introduction(document), COLUMNS]
    for name, rows in document["ablations"].items():
        ablation = ABLATIONS[name]
        path = plot_of(name, pictures, prefix)
        figure = plot(ablation, rows, document)
        with written_whole(path) as temporary:
            figure.savefig(temporary, dpi=110, metadata={"Software": SOFTWARE})
        plt.close(figure)
        place = path.relative_to(page.parent).as_posix()
        parts += [
            f"## {ablation.title}\n",
            f"{ablation.note}\n",
            table(ablation, rows),
            f"![{ablation.title}]({place})\n",
        ]
    with written_whole(page) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def introduction(document: dict) -> str:
    """Return the paragraphs that say what was run, on which images and models."""
    run = document["run"]
    dataset, models = run["dataset"], run["models"]
    graph = models.get("graph") or f"diffusion {models['diffusion']}"
    networks = f"CLIP {markdown(models['clip'])} and {markdown(graph)}"
    if is_tiny(run):
        networks = "the tiny models"
    failed = document["failed"]
    left_out = f" ({failed} could not be evaluated)" if failed else ""
    parts = [
        f"Written by {code(document['command'])}; no figure is typed by hand.",
        f"On {document['images']} of the {dataset['images']} images of the data set "
        f"{markdown(dataset['name'])}{left_out}, with the preset {run['preset']['name']} and "
        f"{networks}; commit {run['commit']}.",
    ]
    if is_tiny(run):
        parts.append(
            "**The tiny models are a fixture, not evidence for NERVE** "
            "([their card](../nerve_fast/tiny/models/README.md)): this shows that the ablations "
            "run, and what they say of one invented world."
        )
    return "\n\n".join(parts) + "\n"


def table(ablation: Ablation, rows: list[dict]) -> str:
    """Return the table of an ablation as Markdown; the base setting is bold."""
    published = ablation.published
    heads = ["", "mIoU", "to the default", *(f"slides, {NAMES[name]}" for name in published)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    base = next(row for row in rows if row["base"])
    for row in rows:
        cells = [row["label"], _percent(row["miou"]), ""]
        if row["base"]:
            cells = [f"**{cells[0]}**", f"**{cells[1]}**", "default"]
        else:
            low, high = (_percent(edge, "+") for edge in row["interval"])
            cells[2] = f"{_percent(row['miou'] - base['miou'], '+')} ({low} to {high})"
        for figures in published.values():
            figure, default = figures[row["label"]], figures[rows[-1]["label"]]
            cells.append(f"{figure:.1f}" + f" ({figure - default:+.1f})" * (row is not rows[-1]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(value: float, sign: str = "") -> str:
    """Format a share as %, and ``nan``, where no pixel counts, as a dash."""
    return "–" if math.isnan(value) else f"{100 * value:{sign}.1f}"


def plot(ablation: Ablation, rows: list[dict], document: dict):
    """Plot a curve where labels are numbers, else points; the caller closes the figure."""
    draw = _curve if ablation.axis else _points
    figure = draw(ablation, rows)
    dataset = document["run"]["dataset"]["name"]
    figure.suptitle(f"{ablation.title}: {dataset}, {document['images']} images", fontsize=11)
    return figure


def _curve(ablation: Ablation, rows: list[dict]):
    figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
    base = next(row for row in rows if row["base"])
    values = [float(row["label"]) for row in rows]
    low, high = ([100 * (base["miou"] + row["interval"][side]) for row in rows] for side in (0, 1))
    axis.fill_between(
        values,
        low,
        high,
        alpha=0.15,
        linewidth=0,
        label="default and the middle 95 % of the difference to it",
    )
    axis.plot(values, [100 * row["miou"] for row in rows], marker="o", markersize=4)
    axis.plot(float(base["label"]), 100 * base["miou"], "k*", markersize=12, label="default")
    axis.set_xlabel(ablation.axis)
    axis.set_ylabel("mIoU, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def _points(ablation: Ablation, rows: list[dict]):
    figure, axis = plt.subplots(figsize=(7.5, 1.5 + 0.5 * len(rows)), layout="constrained")
    base = next(row for row in rows if row["base"])
    places = range(len(rows))
    differences = [100 * (row["miou"] - base["miou"]) for row in rows]
    edges = [[100 * edge for edge in row["interval"]] for row in rows]
    low, high = zip(*edges, strict=True)
    axis.hlines(places, low, high, "black", label="its middle 95 %")
    axis.plot(differences, places, "ko", label="measured")
    for step, (dataset, figures) in enumerate(ablation.published.items(), start=1):
        axis.plot(
            [figures[row["label"]] - figures[rows[-1]["label"]] for row in rows],
            [place + 0.17 * step for place in places],
            MARKERS[dataset],
            color=COLOURS[dataset],
            fillstyle="none",
            label=f"slides, {NAMES[dataset]}",
        )
    axis.axvline(0, color="grey", linewidth=1, linestyle="--")
    labels = [f"{row['label']} ({_percent(row['miou'])} %)" for row in rows]
    axis.set_yticks(list(places), labels)
    axis.set_ylim(len(rows) - 0.2, -0.5)
    axis.set_xlabel("mIoU less that of the default, points")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=5)
    return figure
