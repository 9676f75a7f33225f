"""``python -m bench.fit``: fit the cost model of ``nerve_fast.dispatch`` to this machine.

Times walks of all routes in turn, finds the seconds that a unit of each kind of work takes (least
squares of the relative errors, none below 0), and writes them to ``nerve_fast/dispatch/rates.json``
as those of a CPU.
"""

import argparse
import dataclasses
import json
import os
import platform
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from tqdm import tqdm

from bench import cases
from bench.isolated import measure
from nerve_fast import NerveConfig
from nerve_fast.dispatch.costs import Problem, Work, work
from nerve_fast.files import written_whole

RATES = Path(__file__).parents[1] / "nerve_fast" / "dispatch" / "rates.json"
BF16 = torch.bfloat16

WALKS = [
    (tokens, labels, normalization, route, dtype)
    for tokens, labels in ((1024, 21), (4096, 21), (4096, 100), (9216, 21))
    for normalization, route in (
        ("softmax", "dense"),
        ("softmax", "streaming"),
        ("relu", "dense"),
        ("l1", "factorized"),
        ("shift", "factorized"),
    )
    for dtype in (torch.float32, BF16)
    if not (route == "streaming" and tokens > 4096)
] + [(65_536, 21, "shift", "factorized", torch.float32)]
REFERENCES = [(1024, 21, "softmax"), (4096, 21, "softmax"), (4096, 21, "relu")]


def problem(tokens, labels, normalization, dtype, weights_given=True) -> Problem:
    return Problem(
        batch=1,
        heads=cases.HEADS,
        tokens=tokens,
        head_dim=cases.HEAD_DIM,
        labels=labels,
        config=NerveConfig(normalization=normalization),
        device=torch.device("cpu"),
        dtype=dtype,
        weights_given=weights_given,
    )


def main() -> int:
    argparse.ArgumentParser(prog="python -m bench.fit", description=__doc__).parse_args()
    names, amounts, seconds = [], [], []
    for case in tqdm(WALKS + REFERENCES, "walks", disable=None):
        if case in REFERENCES:
            tokens, labels, normalization = case
            walk = problem(tokens, labels, normalization, torch.float32)
            amount = work(walk, "reference", "dense")
            measured = measure(cases.reference_walk, *case)
        else:
            tokens, labels, normalization, route, dtype = case
            walk = problem(tokens, labels, normalization, dtype)
            amount = work(walk, "blocked", route, tokens if route == "dense" else 0)
            measured = measure(cases.blocked_walk, *case)
        names.append(case)
        amounts.append(amount.values())
        seconds.append(measured.seconds)
    amounts, seconds = np.array(amounts), np.array(seconds)
    relative = amounts / seconds[:, None]
    # Units differ by twelve orders of magnitude: scaled columns keep the solver exact.
    scale = relative.max(0)
    scale[scale == 0] = 1
    solution, _ = nnls(relative / scale, np.ones(len(seconds)))
    rates = solution / scale
    fields = [field.name for field in dataclasses.fields(Work)]
    for name, predicted, measured in zip(names, amounts @ rates, seconds, strict=True):
        print(f"{predicted / measured:5.2f} of the measured {measured:8.4f} s: {name}")
    known = json.loads(RATES.read_text())
    known["cpu"] = {
        "source": f"fitted on {cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "seconds_per_unit": dict(zip(fields, rates.tolist(), strict=True)),
    }
    with written_whole(RATES) as path:
        path.write_text(json.dumps(known, indent=2) + "\n")
    return 0


def cpu_name() -> str:
    """The processor's name, where the system tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
