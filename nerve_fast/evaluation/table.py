"""Table 1 of the slides with what ``evaluate`` measured beside it."""

from collections.abc import Sequence
from pathlib import Path

from nerve_fast.errors import InputError
from nerve_fast.evaluation.ablation.ablations import PUBLISHED
from nerve_fast.evaluation.differences import (
    is_authors,
    is_tiny,
    method_of,
    model_differences,
    name_of,
    postprocessed,
    setting_differences,
)
from nerve_fast.evaluation.published import (
    COLUMNS,
    EIGHTH,
    MADE_BY,
    PRESENT,
    average_of_eight,
    average_of_seven,
    command_of,
    counterpart,
    mean,
    of_another,
    rows,
    unset,
)
from nerve_fast.evaluation.results import grouped, is_result
from nerve_fast.utils.files import refuse_foreign, written_whole
from nerve_fast.utils.lines import read_json
from nerve_fast.utils.text import markdown

TITLE = "# Table 1, published and measured\n"
"""Of the page."""

OTHERWISE = "†"
"""Marks a row whose settings are not those that its method's authors publish."""

MARK = "\\*"
"""Marks a figure that was measured on a part of a data set; a bare star would end bold text."""


def report(paths: Sequence[Path], output: Path | None) -> str:
    """Return the page of some results, and write it to ``output`` where one is given.

    Args:
        paths: of the ``results.json`` that ``evaluate`` leaves; there may be none.

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


def page(measured_rows: Sequence[dict[str, dict]]) -> str:
    """Return Markdown: the table, what else was measured, differences, and commands of the rest."""
    parts = [
        TITLE,
        "mIoU in %, published figures from Table 1 of the slides. What was measured has a number "
        "in place of a venue and stands below the row of its method, with the difference to it in "
        "brackets; `*` marks a part of the data set's images, `†` a row whose settings are not "
        "those that its method's authors publish: what differs is said below. *Avg of 7* is the "
        "mean of the seven columns, where all are there. *Avg of 8* counts Cityscapes too, of "
        "which the slides have no column: some of their averages, such as SCLIP's 38.2 and "
        "NACLIP's 39.4, are of eight data sets, others, such as NERVE's 48.1, of seven.\n",
        table(measured_rows),
        "CLIPer's two rows are in no slide; they stand beside NERVE's because they are higher. "
        f"Source: {PUBLISHED['beside']['source']}\n",
    ]
    parts += other_data_sets(measured_rows)
    parts += present_means(measured_rows)
    if measured_rows:
        parts.append("## What was measured\n")
    for number, row in enumerate(measured_rows, start=1):
        parts += remarks(number, row)
    return "\n".join([*parts, *commands(measured_rows)]) + "\n"


def table(measured_rows: Sequence[dict[str, dict]]) -> str:
    """Return the table: published rows in the slides' order, each followed by its measured rows."""
    heads = ["Method", "", "Post.", *COLUMNS.values(), "Avg of 7", "Avg of 8"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    left = {
        number: row
        for number, row in enumerate(measured_rows, start=1)
        if any(dataset in COLUMNS for dataset in row)
    }
    for published in rows():
        cells = [published["method"], published["venue"], yes(published["postprocessed"])]
        averages = average_of_seven(published), average_of_eight(published)
        cells += map(figure, [*published["miou"], *averages])
        lines.append(f"| {' | '.join(cells)} |")
        below = [number for number, row in left.items() if counterpart(run_of(row)) is published]
        lines += [measured_line(number, left.pop(number), published) for number in below]
    lines += [measured_line(number, row, None) for number, row in left.items()]
    return "\n".join(lines) + "\n"


def run_of(row: dict[str, dict]) -> dict:
    """Return the run of the first result of a row, whose method is that of all."""
    return next(iter(row.values()))["run"]


def measured_line(number: int, row: dict[str, dict], published: dict | None) -> str:
    run = run_of(row)
    alike = all(is_authors(one["run"]) for one in row.values())
    name = f"{markdown(method_of(run))}{OTHERWISE * (not alike)}"
    cells = [name, f"({number}) measured", yes(postprocessed(run))]
    if published and published["method"] in PRESENT:
        # Its figures are other means than those of this table.
        published = None
    expected = published["miou"] if published else [None] * len(COLUMNS)
    counted = (*COLUMNS, EIGHTH)
    scores = {dataset: one["miou"] for dataset, one in row.items() if dataset in counted}
    whole = {dataset: row[dataset]["complete"] for dataset in scores}
    for dataset, usual in zip(COLUMNS, expected, strict=True):
        if published and dataset in of_another(published):
            usual = None
        cells.append(measured(scores.get(dataset), usual, whole.get(dataset)))
    for sets, usual in (
        (tuple(COLUMNS), average_of_seven(published) if published else None),
        (counted, average_of_eight(published) if published else None),
    ):
        average = mean([scores.get(dataset) for dataset in sets])
        complete = all(whole.get(dataset, True) for dataset in sets)
        cells.append(measured(average, usual, complete))
    return f"| {' | '.join(f'**{cell}**' if cell != '–' else cell for cell in cells)} |"


def measured(score: float | None, published: float | None, complete: bool | None) -> str:
    """Format a score in [0, 1] as a cell, with its difference to a published figure in %."""
    if score is None:
        return "–"
    difference = "" if published is None else f" ({100 * score - published:+.1f})"
    return f"{100 * score:.1f}{MARK * (not complete)}{difference}"


def other_data_sets(measured_rows: Sequence[dict[str, dict]]) -> list[str]:
    """Return a table of what was measured on data sets that Table 1 has no column of."""
    lines = [
        f"| ({number}) | {markdown(name_of(one['run']))} | {markdown(dataset)} | "
        f"{measured(one['miou'], None, one['complete'])} |"
        for number, row in enumerate(measured_rows, start=1)
        for dataset, one in row.items()
        if dataset not in COLUMNS
    ]
    heads = ["## Other data sets\n", "| | | | mIoU |", "|---|---|---|---|"]
    return [*heads, *lines, ""] if lines else []


def present_means(measured_rows: Sequence[dict[str, dict]]) -> list[str]:
    """Return a table of means over the classes of the truth, for methods published as such."""
    lines = []
    for number, row in enumerate(measured_rows, start=1):
        published = counterpart(run_of(row))
        if published is None or published["method"] not in PRESENT:
            continue
        figures = dict(zip(COLUMNS, published["miou"], strict=True))
        figures[EIGHTH] = published.get(EIGHTH)
        for dataset, one in row.items():
            usual = figures.get(dataset)
            cells = [
                f"({number}) {markdown(method_of(one['run']))}",
                markdown(COLUMNS.get(dataset, dataset)),
                measured(one["miou"], None, one["complete"]),
                measured(one.get("present_miou"), usual, one["complete"]),
                figure(usual),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    heads = [
        "## Means over the classes of the truth alone\n",
        f"The published figures of {', '.join(PRESENT)} are these; all others are mmseg's mIoU, "
        "whose classes are those of the truth or of the prediction.\n",
        "| | | mIoU | over classes of the truth | published |",
        "|---|---|---|---|---|",
    ]
    return [*heads, *lines, ""] if lines else []


def commands(measured_rows: Sequence[dict[str, dict]]) -> list[str]:
    """Return a list of what makes each published row that no result is there of."""
    lines = []
    for published in rows():
        preset, _ = MADE_BY[published["method"], published["postprocessed"]]
        done = {
            dataset
            for row in measured_rows
            if counterpart(run_of(row)) is published and run_of(row)["preset"]["name"] == preset
            for dataset in row
        }
        command = command_of(published, done)
        if not command:
            continue
        aside = [f"; {COLUMNS[dataset]} is {one}" for dataset, one in of_another(published).items()]
        lines.append(f"- {what_of(published)}: `{command}`{''.join(aside)}")
    if not lines:
        return []
    told = (
        "`ROOTS` is a folder that holds each data set, or a link to it, by the data set's name; "
        "files that a command names are to be downloaded by hand.\n"
    )
    parts = [
        f"{what_of(published)} on {', '.join(columns)}"
        for published in rows()
        if (columns := unset(published))
    ]
    nowhere = f"\nNo settings are public for {'; '.join(parts)}.\n"
    return ["## What was not measured, and the command that does\n", told, *lines, nowhere]


def what_of(published: dict) -> str:
    """Return the method of a published row, and whether it is post-processed."""
    return published["method"] + ", post-processed" * published["postprocessed"]


def remarks(number: int, row: dict[str, dict]) -> list[str]:
    """Return a list of remarks on a measured row."""
    first = run_of(row)
    note = markdown(first["preset"]["note"])
    lines = [f"({number}) {markdown(name_of(first))}. {note}\n"]
    if is_tiny(first):
        lines.append(
            "- **With the tiny models, which know one invented world: no evidence for NERVE.**"
        )
    published = counterpart(first)
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


def figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def yes(value: bool) -> str:
    return "Yes" if value else "No"
