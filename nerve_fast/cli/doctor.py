"""The command ``doctor``: what this machine has and what is missing."""

import os
import platform
from importlib import metadata

import torch

from nerve_fast.dispatch import pick_device, resolve, selfcheck, triton_obstacle
from nerve_fast.dispatch.select import KERNEL_DTYPES
from nerve_fast.errors import InputError
from nerve_fast.utils.files import cache_folder


def add_doctor(commands) -> None:
    """Add ``doctor`` to the subparsers of the command line."""
    command = commands.add_parser("doctor", help="say what this machine has and what is missing")
    command.set_defaults(run=_run)
    command.add_argument(
        "--check", action="store_true", help="compare every kernel with the reference, anew"
    )


def _run(options) -> int:
    """Say in words what is here, and of what is not, how to get it."""
    device = pick_device(None)
    if options.check:
        return _check(device)
    print(f"nerve-fast {metadata.version('nerve-fast')}, Python {platform.python_version()}")
    print(f"system: {platform.platform()}, {os.cpu_count()} CPU cores")
    print("\npackages")
    for name in ("torch", "triton", "diffusers", "transformers"):
        try:
            print(f"  {name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"  {name} is not installed")
    print("\ndevices")
    print("  cpu")
    for index in range(torch.cuda.device_count()):
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
        major, minor = torch.cuda.get_device_capability(index)
        print(
            f"  cuda:{index} {torch.cuda.get_device_name(index)}, capability {major}.{minor}, "
            f"{free:.1f} of {total:.1f} GiB free"
        )
    if not torch.cuda.is_available():
        built_for = torch.version.cuda or torch.version.hip
        print(
            f"  no GPU that torch can use (this torch is built for {built_for})"
            if built_for
            else "  no GPU: this torch is built for the CPU alone"
        )
    if torch.backends.mps.is_available():
        print("  mps")
    print("\nbackends")
    print("  reference: ready\n  blocked: ready")
    reasons = [triton_obstacle(device, dtype) for dtype in KERNEL_DTYPES]
    # Mostly the same for all of them.
    for reason in dict.fromkeys(reasons):
        print(f"  triton: {reason or 'ready'}")
    try:
        resolve("auto")
    except InputError as error:
        print(f"  {error}")
    print("\nmodels")
    _report_models()
    return 0


def _check(device: torch.device) -> int:
    """Check all kernels on shapes of all kinds; returns 1 where one is wrong."""
    reason = triton_obstacle(device, torch.float16, checked=False)
    if reason:
        raise InputError(f"--check needs kernels that start, and backend 'triton' {reason}")
    from nerve_fast.bench.harness.checks import check_kernels

    selfcheck.forget(device)
    checks = check_kernels(device.type == "cuda")
    return int(not all(check["passed"] for check in checks))


def _report_models() -> None:
    from huggingface_hub import try_to_load_from_cache

    from nerve_fast.backbones import clip, diffusion

    print("  tiny: ships with the package")
    for source, file in (
        (clip.DEFAULT_CLIP, clip.WEIGHTS),
        (diffusion.DEFAULT_DIFFUSION, diffusion.WEIGHTS),
    ):
        here = isinstance(try_to_load_from_cache(source, file), str)
        print(
            f"  {source}: "
            + ("in the cache" if here else f"not here; get it: hf download {source}")
        )
    print(f"  text embeddings are kept in {cache_folder()}")
