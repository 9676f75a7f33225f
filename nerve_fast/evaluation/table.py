"""Table 1 of the slides with what ``evaluate`` measured beside it."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nerve_fast.errors import InputError
from nerve_fast.evaluation.ablation.ablations import PUBLISHED
from nerve_fast.evaluation.differences import (
    changed,
    is_authors,
    is_tiny,
    method_key,
    method_of,
    model_differences,
    name_of,
    postprocessed,
    setting_differences,
)
from nerve_fast.utils.files import refuse_foreign, written_whole
from nerve_fast.utils.lines import read_json
from nerve_fast.utils.text import markdown

TABLE = PUBLISHED["table1"]
COLUMNS = {dataset: column for column, dataset in TABLE["columns"].items()}
"""The slides' short names, by data set."""

PARTS = {
    "dataset": {"name", "images", "classes"},
    "preset": {"name", "note"},
    "settings": {"prior"},
    "refiner": {"name"},
    "models": {"clip"},
}
"""The keys that each part of a run must have."""

TITLE = "# Table 1, published and measured\n"
"""Of the page."""

OTHERWISE = "†"
"""Marks a row whose settings are not those that its method's authors publish."""

MARK = "\\*"
"""Marks a figure that was measured on a part of a data set; a bare star would end bold text."""

ROUNDING = 0.1
"""The largest difference between a printed average and the mean of printed figures that rounding
explains."""


def report(paths: Sequence[Path], output: Path | None) -> str:
    """Return the page of some results, and write it to ``output`` where one is given.

    Args:
        paths: of the ``results.json`` that ``evaluate`` leaves.

    Raises:
        InputError: a file is no such result, two are of the same, or the output cannot be written
            or is a file that is no such page.
    """
    if output:
        refuse_foreign(output, TITLE.encode())
    results = [load(path) for path in paths]
    text = page(grouped(results, paths))
    if output:
        with written_whole(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return text


def load(path: Path) -> dict:
    """Read a ``results.json`` of ``evaluate``.

    Raises:
        InputError: the file cannot be read, or is not such a result.
    """
    results = read_json(path)
    if not is_result(results):
        raise InputError(f"{path}: expected a results.json of nerve-fast evaluate")
    try:
        # All that the page says of it; what is odd in the file shows here.
        page(grouped([results], [path]))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path}: expected a results.json of nerve-fast evaluate, with other values ({error})"
        ) from error
    return results


def is_result(results) -> bool:
    """Say whether a document has all keys that the page needs."""
    if not isinstance(results, dict) or not {"miou", "images", "complete", "run"} <= set(results):
        return False
    run = results["run"]
    return (
        isinstance(run, dict)
        and "seed" in run
        and all(isinstance(run.get(part), dict) for part in PARTS)
        and all(names <= set(run[part]) for part, names in PARTS.items())
        and all(isinstance(run[part]["name"], str) for part in ("dataset", "preset", "refiner"))
    )


def grouped(results: Sequence[dict], paths: Sequence[Path]) -> list[dict[str, dict]]:
    """Group results into rows, each by data set: one row is one method with one set of models.

    Where that gives two of one data set, what was changed of the preset tells the rows apart.

    Raises:
        InputError: two are of the same row and data set.
    """
    rows = []
    for alike in together(zip(results, paths, strict=True), method_key):
        once = len({one["run"]["dataset"]["name"] for one, _ in alike}) == len(alike)
        for group in [alike] if once else together(alike, changed):
            row: dict[str, dict] = {}
            files: dict[str, Path] = {}
            for one, path in group:
                run, dataset = one["run"], one["run"]["dataset"]["name"]
                if dataset in row:
                    raise InputError(
                        f"{files[dataset]} and {path} are both of {dataset}, {name_of(run)}, with "
                        "the same models and settings; name one of them"
                    )
                row[dataset], files[dataset] = one, path
            rows.append(row)
    return rows


def together(
    results: Iterable[tuple[dict, Path]], key: Callable[[dict], object]
) -> list[list[tuple[dict, Path]]]:
    """Group results whose runs have the same ``key``."""
    groups: dict[str, list[tuple[dict, Path]]] = {}
    for one, path in results:
        called = json.dumps(key(one["run"]), sort_keys=True)
        groups.setdefault(called, []).append((one, path))
    return list(groups.values())


def page(rows: Sequence[dict[str, dict]]) -> str:
    """Return Markdown: the table, other data sets, and all differences from the presets."""
    parts = [
        TITLE,
        "mIoU in %, published figures from Table 1 of the slides. What was measured has a number "
        "in place of a venue and stands below the row of its method, with the difference to it in "
        "brackets; `*` marks a part of the data set's images, `†` a row whose settings are not "
        "those that its method's authors publish: what differs is said below. *Avg* is there where "
        "all seven are, and its difference is to the mean of the seven figures printed.\n",
        table(rows),
        averages(),
    ]
    others = {
        (number, dataset): one
        for number, row in enumerate(rows, start=1)
        for dataset, one in row.items()
        if dataset not in COLUMNS
    }
    if others:
        parts += ["## Other data sets\n", "| | | | mIoU |", "|---|---|---|---|"]
        for (number, dataset), one in others.items():
            parts.append(
                f"| ({number}) | {markdown(name_of(one['run']))} | {markdown(dataset)} | "
                f"{measured(one['miou'], None, one['complete'])} |"
            )
        parts.append("")
    parts.append("## What was measured\n")
    for number, row in enumerate(rows, start=1):
        parts += remarks(number, row)
    return "\n".join(parts) + "\n"


def table(rows: Sequence[dict[str, dict]]) -> str:
    """Return the table: published rows in the slides' order, each followed by its measured rows."""
    heads = ["Method", "", "Post.", *COLUMNS.values(), "Avg"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    left = {
        number: row
        for number, row in enumerate(rows, start=1)
        if any(dataset in COLUMNS for dataset in row)
    }
    for published in TABLE["rows"]:
        cells = [published["method"], published["venue"], yes(published["postprocessed"])]
        cells += map(figure, [*published["miou"], published["average"]])
        lines.append(f"| {' | '.join(cells)} |")
        below = [number for number, row in left.items() if counterpart(row) is published]
        lines += [measured_line(number, left.pop(number), published) for number in below]
    lines += [measured_line(number, row, None) for number, row in left.items()]
    return "\n".join(lines) + "\n"


def counterpart(row: dict[str, dict]) -> dict | None:
    """Return the published row of a method, preferably post-processed as the measured one is."""
    run = next(iter(row.values()))["run"]
    same = [published for published in TABLE["rows"] if published["method"] == method_of(run)]
    alike = [published for published in same if published["postprocessed"] == postprocessed(run)]
    return next(iter(alike or same), None)


def measured_line(number: int, row: dict[str, dict], published: dict | None) -> str:
    run = next(iter(row.values()))["run"]
    alike = all(is_authors(one["run"]) for one in row.values())
    name = f"{markdown(method_of(run))}{OTHERWISE * (not alike)}"
    cells = [name, f"({number}) measured", yes(postprocessed(run))]
    expected = published["miou"] if published else [None] * len(COLUMNS)
    scores = {dataset: one["miou"] for dataset, one in row.items() if dataset in COLUMNS}
    whole = {dataset: row[dataset]["complete"] for dataset in scores}
    for dataset, figures in zip(COLUMNS, expected, strict=True):
        cells.append(measured(scores.get(dataset), figures, whole.get(dataset)))
    average = mean([scores.get(dataset) for dataset in COLUMNS])
    cells.append(measured(average, mean(expected), all(whole.values())))
    return f"| {' | '.join(f'**{cell}**' if cell != '–' else cell for cell in cells)} |"


def measured(score: float | None, published: float | None, complete: bool | None) -> str:
    """Format a score in [0, 1] as a cell, with its difference to a published figure in %."""
    if score is None:
        return "–"
    difference = "" if published is None else f" ({100 * score - published:+.1f})"
    return f"{100 * score:.1f}{MARK * (not complete)}{difference}"


def remarks(number: int, row: dict[str, dict]) -> list[str]:
    """Return a list of remarks on a measured row."""
    first = next(iter(row.values()))["run"]
    note = markdown(first["preset"]["note"])
    lines = [f"({number}) {markdown(name_of(first))}. {note}\n"]
    if is_tiny(first):
        lines.append(
            "- **With the tiny models, which know one invented world: no evidence for NERVE.**"
        )
    published = counterpart(row)
    if published is None:
        lines.append("- Table 1 has no such method.")
    elif published["postprocessed"] != postprocessed(first):
        kind = "with" if published["postprocessed"] else "without"
        lines.append(f"- Published {kind} post-processing only.")
    lines += [f"- {markdown(what)}" for what in model_differences(first)]
    for dataset, one in row.items():
        name = markdown(COLUMNS.get(dataset, dataset))
        if not one["complete"]:
            failed = one.get("failed", 0)
            lines.append(
                f"- **{name}: only {one['images']:,} of {one['run']['dataset']['images']:,} images"
                + f"; {failed:,} could not be evaluated" * (failed > 0)
                + ".**"
            )
        lines += [f"- {name}: {markdown(what)}" for what in setting_differences(one["run"])]
    if len(lines) == 1:
        lines.append("- As the preset has it.")
    return [*lines, ""]


def averages() -> str:
    """Name the rows whose printed average is not the mean of their printed figures."""
    found = []
    for row in TABLE["rows"]:
        average = mean(row["miou"])
        if average is not None and abs(average - row["average"]) > ROUNDING:
            post = ", post-processed" * row["postprocessed"]
            found.append(f"{row['method']}{post} {row['average']:.1f} ({average:.1f})")
    return (
        "Some printed averages are not the mean of the seven printed figures, which is in "
        f"brackets here: {'; '.join(found)}.\n"
    )


def figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, or ``None`` where a value is ``None``."""
    known = [value for value in values if value is not None]
    return None if len(known) < len(values) else sum(known) / len(known)


def yes(value: bool) -> str:
    return "Yes" if value else "No"
