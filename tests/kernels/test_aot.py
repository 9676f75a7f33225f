"""Kernels compiled for GPUs that are not here, in a process of its own: this one interprets."""

import os
import re
import subprocess
import sys

import pytest

from nerve_fast.kernels import aot, configs

TENSOR_CORES = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "mfma"}


def compiled(*arguments):
    """Exit code and lines of the tool."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "nerve_fast.kernels.aot", "--quick", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines() or [done.stderr]


SLOW = [
    pytest.param(target, marks=pytest.mark.slow) for target in TENSOR_CORES if target != "sm_90"
]


@pytest.mark.parametrize("target", ["sm_90", *SLOW])
def test_every_kernel_compiles_for(target):
    code, lines = compiled("--target", target, "--dtype", "bfloat16")
    assert code == 0, lines[-1]
    assert lines[-1].startswith("0 failed")
    lines = [line for line in lines if line.startswith(f"{target} ")]
    kernels = {line.split()[2] for line in lines}
    assert kernels == set(configs.CANDIDATES)
    for line in lines:
        kernel = line.split()[2]
        if kernel in ("streaming_step", "head_entropy", "numerators", "cosine_affinity"):
            assert re.search(rf"\b{TENSOR_CORES[target]}\b", line), line
        if kernel in ("streaming_step", "dense_step", "head_entropy", "pack", "local_affinity"):
            assert "16-byte loads" in line, line
        if target == "sm_90":
            assert " 0 B spilled" in line, line


def test_all_targets_are_tried():
    assert set(TENSOR_CORES) == set(aot.TARGETS)


@pytest.mark.slow
def test_sm_90_in_float32():
    code, lines = compiled("--target", "sm_90", "--dtype", "float32")
    assert code == 0, lines[-1]
    assert "wgmma" in " ".join(lines)


def test_interpreted_kernels_cannot_be_compiled():
    command = [sys.executable, "-m", "nerve_fast.kernels.aot"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "TRITON_INTERPRET is set" in done.stderr
