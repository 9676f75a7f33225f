"""The kernels' checks under a tool that watches each access to memory."""

import os
import shutil
import subprocess
import sys

import torch

from nerve_fast.bench.harness.driver import Driver
from nerve_fast.errors import InputError

SANITIZERS = ("compute-sanitizer", "gsan")


def sanitized(name: str, driver: Driver) -> int:
    """Run the checks under a sanitizer; returns its exit code.

    Args:
        name: ``compute-sanitizer``, which comes with CUDA, or ``gsan``, which comes with Triton.
        driver: of this machine.

    Raises:
        InputError: there is no GPU, or the tool is not installed.
    """
    if not driver.on_gpu:
        raise InputError(f"--sanitizer {name} watches a GPU, and torch finds none")
    return _compute_sanitizer() if name == "compute-sanitizer" else _gsan(driver)


def _compute_sanitizer() -> int:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise InputError("compute-sanitizer is not on the PATH; CUDA's toolkit brings it")
    # An allocator that keeps memory would hide accesses beyond a tensor.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [tool, "--error-exitcode", "9", sys.executable, "-m", "bench.gpu", "--only-checks"]
    return subprocess.run(command, env=environment, check=False).returncode


def _gsan(driver: Driver) -> int:
    import triton

    try:
        from triton.experimental.gsan import create_mem_pool
    except ImportError as error:
        raise InputError(
            f"triton {triton.__version__} has no triton.experimental.gsan; a newer one does"
        ) from error
    # Kernels compiled from now on report each access; memory of the pool has their shadow.
    triton.knobs.compilation.instrumentation_mode = "gsan"
    with torch.cuda.use_mem_pool(create_mem_pool()):
        checks = driver.check_kernels(alone=True)
    return int(not all(check["passed"] for check in checks))
