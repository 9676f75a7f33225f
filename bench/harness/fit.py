"""``python -m bench.harness.fit RESULTS.json``: fit the costs of ``nerve_fast.dispatch`` to a run.

From the walks that ``nerve-fast bench`` timed on a CPU it finds the seconds that a unit of each
kind of work takes (least squares of the relative errors, none below 0), prints how far each walk is
from what they predict, and writes them to ``nerve_fast/dispatch/rates.json`` as those of a CPU.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from nerve_fast.bench.harness.case import Setting
from nerve_fast.bench.harness.results import load, rows_of
from nerve_fast.bench.harness.row import Row
from nerve_fast.bench.harness.words import in_words
from nerve_fast.dispatch.costs import Problem, Work, work
from nerve_fast.errors import InputError
from nerve_fast.utils.files import written_whole

RATES = Path(__file__).parents[2] / "nerve_fast" / "dispatch" / "rates.json"
BACKENDS = ("blocked", "reference")


def work_of(row: Row) -> Work:
    """Return the work of the walk that a row measured."""
    setting = Setting(**row.setting)
    problem = Problem(
        batch=1,
        heads=setting.heads,
        tokens=setting.tokens,
        head_dim=setting.head_dim,
        labels=setting.labels,
        config=setting.config(),
        device=torch.device(setting.device),
        dtype=setting.torch_dtype,
        weights_given=True,
    )
    backend, _, route = row.contender.partition(" ")
    stored = setting.tokens if route == "dense" else 0
    return work(problem, backend, route or "dense", stored)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.harness.fit", description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    path = parser.parse_args().results
    try:
        document = load(path)
        rows = [
            row
            for row in rows_of(document)
            if row.operation == "walk" and row.seconds and row.contender.split()[0] in BACKENDS
        ]
        if document["machine"]["kind"] != "cpu" or not rows:
            raise InputError(f"{path}: holds no walks of a CPU")
    except InputError as error:
        print(f"bench.harness.fit: {error}", file=sys.stderr)
        return 2
    amounts = np.array([work_of(row).values() for row in rows])
    seconds = np.array([row.seconds for row in rows])
    relative = amounts / seconds[:, None]
    # Units differ by twelve orders of magnitude: scaled columns keep the solver exact.
    scale = relative.max(0)
    scale[scale == 0] = 1
    solution, _ = nnls(relative / scale, np.ones(len(seconds)))
    rates = solution / scale
    fields = [field.name for field in dataclasses.fields(Work)]
    for row, predicted in zip(rows, amounts @ rates, strict=True):
        print(
            f"{predicted / row.seconds:5.2f} of the measured {row.seconds:8.4f} s: "
            f"{row.contender}, {in_words(row.setting)}"
        )
    known, machine = json.loads(RATES.read_text()), document["machine"]
    known["cpu"] = {
        "source": f"fitted on {machine['device']}, {machine['cores']} cores, torch "
        f"{machine['torch']}",
        "seconds_per_unit": dict(zip(fields, rates.tolist(), strict=True)),
    }
    with written_whole(RATES) as path:
        path.write_text(json.dumps(known, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
