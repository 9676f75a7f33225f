"""The document that a run writes, and how it is read."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

from nerve_fast.bench.harness.machine import Machine
from nerve_fast.bench.harness.row import Row
from nerve_fast.errors import InputError
from nerve_fast.utils.files import refuse_foreign, written_whole

SCHEMA = 2
FOLDER = Path(__file__).parents[1] / "results"


MARK = b'{\n "schema": '
"""How the documents begin."""


class Results:
    """Rows as they come, kept beside the earlier results until the run is over.

    Args:
        machine: that is measured.
        output: takes the name of the document when :meth:`finish` is called; until then it is
            ``….unfinished.json``, whole at any moment.
        about: what else the document says of the run.
    """

    def __init__(self, machine: Machine, output: Path | None, **about):
        self.output = output
        self.document = {
            "schema": SCHEMA,
            "machine": machine.describe(),
            "ceilings": machine.ceilings(),
            **about,
            "rows": [],
        }
        if output is not None:
            if output.is_dir():
                raise InputError(f"{output}: is a folder; expected the name of a file")
            for path in (output, self.unfinished):
                refuse_foreign(path, MARK)
            try:
                output.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{output.parent}: cannot be made: {error.strerror}") from error
            self._write()

    @property
    def unfinished(self) -> Path:
        return self.output.with_suffix(".unfinished.json")

    @property
    def rows(self) -> list[Row]:
        return [Row(**row) for row in self.document["rows"]]

    def add(self, row: Row) -> None:
        self.document["rows"].append(dataclasses.asdict(row))
        self._write()

    def put(self, **parts) -> None:
        """Add or replace further parts of the document."""
        self.document.update(parts)
        self._write()

    def finish(self) -> None:
        """The run is over: its document takes the place of the earlier one."""
        if self.output is not None:
            os.replace(self.unfinished, self.output)

    def _write(self) -> None:
        if self.output is not None:
            with written_whole(self.unfinished) as path:
                path.write_text(json.dumps(self.document, indent=1) + "\n")


def updated(document: dict, rows: list[Row], commit: str) -> dict:
    """A document in which rows take the place of those of the same cases, and name their commit.

    Those of new cases are added.
    """

    def case(row):
        return (*problem_of(row), row.contender)

    fresh = {
        case(row): dataclasses.replace(row, note=f"{row.note}; commit {commit}".removeprefix("; "))
        for row in rows
    }
    kept = [fresh.pop(case(row), row) for row in rows_of(document)]
    return {**document, "rows": [dataclasses.asdict(row) for row in (*kept, *fresh.values())]}


def load(path: Path) -> dict:
    """A document that :class:`Results` left.

    Raises:
        InputError: it cannot be read, or is of another kind or schema.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not results that can be read: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{path}: its schema is {schema!r}; expected {SCHEMA}: measure again")
    try:
        rows_of(document)
        document["machine"]["kind"], document["ceilings"]["matrix_rates"], document["tier"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged: {error!r}") from error
    return document


def rows_of(document: dict) -> list[Row]:
    return [Row(**row) for row in document["rows"]]


def problem_of(row: Row) -> tuple:
    """The key that comparable rows share: the operation and the setting."""
    return (row.operation, *sorted(row.setting.items()))


def problems(rows: list[Row]) -> Iterator[list[Row]]:
    """The rows of each problem, in the order they were measured."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(problem_of(row), []).append(row)
    yield from found.values()


def own(rows: list[Row]) -> Row | None:
    """The row of this package among those of one problem: the route that ``auto`` takes."""
    ours = [row for row in rows if row.ours and row.seconds]
    taken = [row for row in ours if row.taken]
    return next(iter(taken or ours), None)
