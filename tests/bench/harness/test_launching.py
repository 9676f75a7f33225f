"""What starting kernels costs, with a driver that does nothing."""

import importlib.util
import os
import subprocess
import sys

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)


def run(*arguments, interpret):
    command = [sys.executable, "-m", "bench.harness.launching", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_all_launches_of_a_walk_are_counted():
    done = run("--tokens", "64", interpret="0")
    assert done.returncode == 0, done.stderr
    dense, streaming = done.stdout.splitlines()[1:]
    # Local affinity, transition, pack, numerators, spread, ten steps; no numerators when streaming.
    assert dense.startswith("dense: 15 launches, ")
    assert streaming.startswith("streaming: 14 launches, ")


def test_interpreted_kernels_are_not_launched():
    done = run(interpret="1")
    assert done.returncode == 2
    assert "TRITON_INTERPRET is set" in done.stderr
