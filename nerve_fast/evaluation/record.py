"""The record of a run over a data set on disk, which may be killed at any moment.

``run.json`` says what the run is of, with a checksum; it is there, whole, before anything else.
``images-<process>.jsonl`` grows by a line an image, each with a checksum.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerve_fast.errors import InputError
from nerve_fast.evaluation.folder import claim, made
from nerve_fast.utils.files import prepare_folder
from nerve_fast.utils.lines import add_line, drop_cut_off, read_json, read_lines, write_json
from nerve_fast.utils.provenance import digest

Counts = tuple[Tensor, Tensor]
"""The confusion matrix ``(K, K+1)`` and the boundaries ``(K, 2)`` of an image, both int64."""


def differences(folder: Path, run: Mapping) -> list[str]:
    """Describe where the run that ``folder`` holds was begun with other values than ``run``.

    Groups that ``run`` does not hold are not compared. A folder without a run gives an empty list.

    Raises:
        InputError: ``run.json`` cannot be read.
    """
    begun = _flat(read_run(folder))
    if not begun:
        return []
    asked = _flat(json.loads(json.dumps(run)))
    groups = {name.partition(".")[0] for name in asked}
    names = [name for name in {**begun, **asked} if name.partition(".")[0] in groups]
    return [
        f"{name} was {_shortened(begun.get(name))} and is {_shortened(asked.get(name))}"
        for name in names
        if begun.get(name) != asked.get(name)
    ]


def read_run(folder: Path) -> dict:
    """Read what the run in ``folder`` was begun with; without a run the result is empty.

    Raises:
        InputError: ``run.json`` cannot be read, is not of a run, or does not match its checksum.
    """
    path = folder / "run.json"
    if not path.exists():
        return {}
    run = read_json(path, advice="start over with --fresh")
    parts = ("dataset", "preset", "settings", "refiner", "models", "versions")
    if not isinstance(run, dict) or not all(isinstance(run.get(part, {}), dict) for part in parts):
        raise InputError(f"{path}: is not of an evaluation; start over with --fresh")
    try:
        _flat(run)
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply; start over with --fresh") from None
    if run.pop("sha256", None) != digest(run):
        raise InputError(f"{path}: does not match its checksum; start over with --fresh")
    return run


def refuse_another(folder: Path, run: Mapping) -> None:
    """Raise an :class:`InputError` where ``folder`` holds a run with other settings."""
    if different := differences(folder, run):
        raise InputError(
            f"{folder} holds a run with other settings: {'; '.join(different)}; write to another "
            "folder with -o, or start over with --fresh"
        )


def begin(folder: Path, run: Mapping, processes: int = 1) -> None:
    """Prepare the folder for a run, or for the rest of it; one process does it, before any adds.

    Lines that were cut off when a process was killed are dropped.

    Args:
        folder: of the run.
        run: what the figures depend on.
        processes: how many processes add images.

    Raises:
        InputError: the folder cannot be written, holds a run with other settings, or holds files of
            those names that no run made.
    """
    prepare_folder(folder)
    # Another commit is said with the figures; versions are what a run may not mix.
    refuse_another(folder, {name: value for name, value in run.items() if name != "commit"})
    if not (folder / "run.json").exists():
        if left := next(iter(_files(folder)), None):
            raise InputError(f"{left}: of a run without a run.json; start over with --fresh")
        claim(folder, ["run.json"])
        begun = json.loads(json.dumps(run))
        write_json(folder / "run.json", {**begun, "sha256": digest(begun)})
    claim(folder, ["run.json", *(_name(index) for index in range(processes)), "results.json"])
    for path in _files(folder):
        drop_cut_off(path)


def done(folder: Path, classes: int) -> dict[str, Counts]:
    """Read the images in the files of all processes, by name, each of them once.

    Counts stay sparse to save memory: see :func:`total`.

    Raises:
        InputError: a file or a line cannot be read; the last one may be cut off.
    """
    found: dict[str, Counts] = {}

    def take(image):
        counts = (
            decoded(image["confusion"], (classes, classes + 1)),
            decoded(image["boundary"], (classes, 2)),
        )
        found.setdefault(image["name"], counts)

    for path in _files(folder):
        read_lines(path, take)
    return found


def add(folder: Path, process: int, name: str, counts: Counts) -> None:
    """Append one image to the file of a process, in one write."""
    confusion, boundary = map(encoded, counts)
    line = {"name": name, "confusion": confusion, "boundary": boundary}
    add_line(folder / _name(process), line)


def total(images: Mapping[str, Counts], names: Sequence[str], classes: int) -> Counts:
    """Add up the counts of the images named, from those that :func:`done` returned."""
    sums = (
        torch.zeros(classes, classes + 1, dtype=torch.int64),
        torch.zeros(classes, 2, dtype=torch.int64),
    )
    for name in names:
        for whole, entries in zip(sums, images[name], strict=True):
            row, column, count = entries.T
            whole[row, column] += count
    return sums


def _name(process: int) -> str:
    return f"images-{process}.jsonl"


def _files(folder: Path) -> list[Path]:
    """List the files with images that runs in this folder made."""
    names = sorted(name for name in made(folder) if re.fullmatch(r"images-\d+\.jsonl", name))
    return [folder / name for name in names if (folder / name).exists()]


def encoded(counts: Tensor) -> list[list[int]]:
    """List row, column and count of each non-zero entry of a matrix, for JSON."""
    places = counts.nonzero()
    return torch.cat([places, counts[tuple(places.T)][:, None]], dim=1).tolist()


def decoded(entries: list[list[int]], shape: tuple[int, int]) -> Tensor:
    """Check what :func:`encoded` gave of a matrix of a shape, and return it as ``(n, 3)`` int64.

    Raises:
        ValueError, TypeError, RuntimeError: the entries are not those of such a matrix.
    """
    counts = torch.tensor(entries, dtype=torch.int64).view(-1, 3)
    places = counts[:, :2]
    if (places < 0).any() or (places >= torch.tensor(shape)).any():
        raise ValueError(f"a place outside of {shape}")
    return counts


def _flat(values: Mapping, prefix: str = "") -> dict:
    """Flatten nested dictionaries: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _shortened(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
