"""``python -m bench.harness.launching``: what starting the kernels of a walk costs in Python.

Where no CUDA graph is replayed, each kernel is started from Python. Here the walk's kernels are
compiled for an H100 and started as they would be there, with a driver that does nothing in place of
CUDA's: what is left is the time of Triton's and of this package's Python. A direct launch is one by
the compiled kernel itself, without Triton's look at the arguments.
"""

import argparse
import statistics
import sys
import time
from types import SimpleNamespace

import torch
import triton
from triton.compiler import CompiledKernel

from nerve_fast import NerveConfig
from nerve_fast.kernels import launch, walk
from nerve_fast.kernels.compiled import TARGETS

ROUNDS = 20


class StubbedDriver:
    """A GPU of no kind, on which every start succeeds and nothing runs."""

    def __init__(self):
        self.started = 0
        self.utils = SimpleNamespace(
            load_binary=lambda *binary: (object(), object(), 0, 0, 1024),
            unload_module=lambda module: None,
            get_device_properties=lambda device: {"max_shared_mem": 1 << 20},
        )

    def get_current_target(self):
        return TARGETS["sm_90"]

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device) -> int:
        return 0

    def launcher_cls(self, source, metadata):
        def start(*arguments):
            self.started += 1

        return start


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.harness.launching", description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024, help="default: 1024")
    options = parser.parse_args(arguments)
    if launch.interpreted():
        print("TRITON_INTERPRET is set: nothing is compiled. Unset it.", file=sys.stderr)
        return 2
    driver = StubbedDriver()
    triton.runtime.driver.set_active(driver)
    shape = (5, options.tokens, 64)
    q, k = (torch.randn(shape).bfloat16() for _ in range(2))
    prior, weights = torch.rand(options.tokens, 21), torch.full((5,), 0.2)
    print(f"Triton {triton.__version__}, medians of {ROUNDS} runs on this CPU")
    for route in ("dense", "streaming"):
        config = NerveConfig(steps=10)

        def run(route=route, config=config):
            walk.random_walk(
                q,
                k,
                prior,
                (1, options.tokens),
                config,
                weights,
                route=route,
                stored_rows=options.tokens,
                max_weight_sum=1.0,
            )

        run()
        driver.started = 0
        run()
        launches = driver.started
        whole = median(run)
        in_triton, direct = launch_times(run)
        print(
            f"{route}: {launches} launches, {1e6 * whole:.0f} µs a walk in Python; in Triton "
            f"{1e6 * in_triton:.0f} µs, and by direct launches {1e6 * direct:.0f} µs"
        )
    return 0


def launch_times(run) -> tuple[float, float]:
    """Seconds of all of a walk's launches: by Triton, and by the compiled kernels directly."""
    kept = []
    right = triton.JITFunction.run

    def keep(self, *positional, **named):
        compiled = right(self, *positional, **named)
        kept.append((self, positional, named, compiled))
        return compiled

    triton.JITFunction.run = keep
    try:
        run()
    finally:
        triton.JITFunction.run = right

    def by_triton():
        for kernel, positional, named, _ in kept:
            kernel.run(*positional, **named)

    starts = []
    for kernel, _, named, compiled in kept:
        assert isinstance(compiled, CompiledKernel)
        values = [named[name] for name in kernel.arg_names]
        starts.append((compiled[(*named["grid"], 1, 1)], values))

    def directly():
        for start, values in starts:
            start(*values)

    return median(by_triton), median(directly)


def median(run) -> float:
    """Seconds of this process that ``run`` takes, as the median of rounds."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


if __name__ == "__main__":
    raise SystemExit(main())
