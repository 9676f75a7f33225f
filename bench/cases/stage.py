"""The whole graph stage, entropies to the walked prior, as a user calls it."""

import dataclasses
import functools

from nerve_fast.bench.cases.walk import REFERENCE, through, true_walk, walk_floors
from nerve_fast.bench.harness import floors
from nerve_fast.bench.harness.case import (
    Case,
    Contender,
    Operation,
    Setting,
    cases,
    graph_inputs,
    kernels_run,
)


def stage_floors(setting: Setting) -> list[floors.Floor]:
    entropy = floors.head_entropy(setting.tokens, setting.channels, setting.torch_dtype.itemsize)
    return [entropy + walk for walk in walk_floors(setting)]


STAGE = Operation(
    "graph stage",
    lambda setting, seed: graph_inputs(setting, seed)[:3],
    true_walk,
    stage_floors,
    steady=True,
)
STAGES = [
    Contender(
        f"{backend} auto",
        functools.partial(through, backend=backend, route="auto"),
        ours=True,
        only=kernels_run if backend == "triton" else lambda setting: True,
        compiled=backend == "triton",
        # As a user calls it: it replays a graph of its own.
        graph=False,
    )
    for backend in ("triton", "blocked")
]

# Its maps, one a head and all at once, do not fit beyond.
STAGE_REFERENCE = dataclasses.replace(
    REFERENCE, only=lambda s: s.tokens <= 4096 and s.normalization == "softmax"
)


def settings(device: str) -> list[tuple[str, Setting]]:
    """Token counts of images of 512², 1024² and 2048² pixels."""
    dtype = "bfloat16" if device == "cuda" else "float32"
    found = []
    for normalization in ("softmax", "shift"):
        for tokens in (4096, 16_384, 65_536):
            slow = device == "cpu" and tokens > 16_384
            first = (normalization, tokens) == ("softmax", 4096)
            tier = "full" if slow else "quick" if first else "default"
            setting = Setting(tokens, normalization=normalization, dtype=dtype, device=device)
            found.append((tier, setting))
            if device == "cuda" and normalization == "softmax":
                found.append(("default", setting.replace(dtype="float16")))
    return found


def measured(device: str) -> list[Case]:
    """The cases of this file."""
    return cases(STAGE, [*STAGES, STAGE_REFERENCE], settings(device))


def test_stage(case, run_case):
    run_case(case)
