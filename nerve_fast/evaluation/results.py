"""Results that ``evaluate`` left: whether a file is one, and which make one row of a table."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nerve_fast.errors import InputError
from nerve_fast.evaluation.differences import changed, method_key, name_of

PARTS = {
    "dataset": {"name", "images", "classes"},
    "preset": {"name", "note"},
    "settings": {"prior"},
    "refiner": {"name"},
    "models": {"clip"},
}
"""The keys that each part of a run must have."""


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
