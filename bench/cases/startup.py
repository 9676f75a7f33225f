"""What it costs to begin: imports, and the first walk of a process beside the second."""

import functools
import os
import subprocess
import sys
import tempfile

from nerve_fast.bench.harness.case import Setting, graph_inputs
from nerve_fast.bench.harness.machine import Machine, quantiles, seconds_of

ROUNDS = 3

FIRST_WALK = """
import nerve_fast.bench.cases.startup as startup
print(*startup.first_and_second_walk({device!r}))
"""


def first_and_second_walk(device: str) -> tuple[float, float]:
    """Seconds of the first walk of this process and of the second, compilation included."""
    import torch

    import nerve_fast as nf

    setting = Setting(4096, normalization="shift", device=device)
    q, k, prior, _ = graph_inputs(setting, 0)
    config = setting.config()

    def run():
        nf.random_walk(q, k, prior, setting.grid, config)
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        return seconds_of(run), seconds_of(run)


def rows(machine: Machine) -> list[dict]:
    """Seconds of each way to begin, each in fresh processes."""
    first, second = zip(
        *(
            map(float, _output(FIRST_WALK.format(device=machine.device.type)).split())
            for _ in range(ROUNDS)
        ),
        strict=True,
    )
    named = {
        "python": _timed("pass"),
        "import torch": _timed("import torch"),
        "import nerve_fast": _timed("import nerve_fast"),
        "import nerve_fast, its pipeline too": _timed("from nerve_fast import NervePipeline"),
        "first walk, shift, N = 4096": first,
        "second walk, shift, N = 4096": second,
    }
    return [
        dict(zip(("what", "seconds", "low", "high"), (what, *quantiles(seconds)), strict=True))
        for what, seconds in named.items()
    ]


def _timed(code: str) -> list[float]:
    # Once for the disk's sake.
    _output(code)
    return [seconds_of(functools.partial(_output, code)) for _ in range(ROUNDS)]


def _output(code: str) -> str:
    command = [sys.executable, "-c", code]
    with tempfile.TemporaryDirectory(prefix="nerve-fast-bench-") as nothing:
        # Where nothing has been compiled yet.
        caches = dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"), nothing)
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, **caches}
        )
    return done.stdout


def test_first_call(benchmark):
    benchmark.pedantic(_output, ("import nerve_fast",), rounds=ROUNDS, warmup_rounds=1)
