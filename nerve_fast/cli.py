"""The command line: ``nerve-fast COMMAND``, each command in a function or a module of its own."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from nerve_fast import flags
from nerve_fast.datasets.command import add_data
from nerve_fast.dispatch import (
    BACKEND_NAMES,
    ROUTES,
    choose,
    pick_device,
    plan,
    resolve,
    tuning,
    without_triton,
)
from nerve_fast.errors import InputError
from nerve_fast.evaluation.ablate_command import add_ablate
from nerve_fast.evaluation.commands import add_evaluate
from nerve_fast.evaluation.report_command import add_report
from nerve_fast.files import cache_folder, prepare_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, or 2 after a mistake that a person can mend."""
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
        # Now, while a closed pipe can still be caught.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # `nerve-fast doctor | head -1`: the reader has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except InputError as error:
        print(f"nerve-fast: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        print(
            "nerve-fast: out of memory; a smaller --resolution needs less, and so do fewer labels",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("nerve-fast: interrupted", file=sys.stderr)
        return 130


def _is_out_of_memory(error: Exception) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "DefaultCPUAllocator" in str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nerve-fast",
        description="Training-free open-vocabulary segmentation: words in, a label a pixel out.",
    )
    parser.add_argument("--version", action="version", version=metadata.version("nerve-fast"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_segment(commands)
    add_data(commands)
    add_evaluate(commands)
    add_ablate(commands)
    add_report(commands)
    _add_plan(commands)
    _add_demo(commands)
    _add_tune(commands)
    _add_bench(commands)
    doctor = commands.add_parser("doctor", help="say what this machine has and what is missing")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_segment(commands) -> None:
    command = commands.add_parser(
        "segment",
        help="label every pixel of images",
        description="Writes NAME.labels.png (palette image) and NAME.overlay.png for each image. "
        "Under `accelerate launch -m nerve_fast segment …` each process takes its share.",
    )
    command.set_defaults(run=_segment)
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE|FOLDER")
    command.add_argument(
        "--labels",
        required=True,
        help='classes, ";" between them, "," between synonyms: "cat; dog, puppy; grass"',
    )
    command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    command.add_argument("--save-heatmaps", action="store_true", help="also NAME.heatmaps.png")
    command.add_argument("--save-probabilities", action="store_true", help="also NAME.npz")
    command.add_argument("--save-steps", action="store_true", help="also NAME.steps.png")
    command.add_argument(
        "--resume", action="store_true", help="leave out images whose results are there"
    )
    command.add_argument(
        "--batch-size", type=int, default=1, help="images worked on together (default: 1)"
    )
    command.add_argument(
        "--verify", action="store_true", help="also run the reference, and say how far they differ"
    )

    flags.add_models(command)
    flags.add_large(command)
    flags.add_prior(command)
    flags.add_config(command)


def _segment(options) -> int:
    config = flags.config_of(options)
    # transformers and diffusers take seconds to import; mistakes above should not.
    from nerve_fast.segment import segment

    return segment(options, config)


def _add_plan(commands) -> None:
    command = commands.add_parser(
        "plan",
        help="say how a walk would be carried out, and why",
    )
    command.set_defaults(run=_plan)
    command.add_argument("--tokens", type=int, required=True, help="N, height times width")
    command.add_argument("--labels", type=int, required=True, help="K")
    command.add_argument("--heads", type=int, default=5, help="H (default: 5)")
    command.add_argument("--head-dim", type=int, default=64, help="D (default: 64)")
    command.add_argument("--device", default="cpu", help="default: cpu")
    command.add_argument(
        "--dtype", choices=flags.DTYPES, default="float32", help="default: float32"
    )
    command.add_argument("--backend", choices=BACKEND_NAMES, default="auto", help="default: auto")
    command.add_argument("--route", choices=ROUTES, default="auto", help="default: auto")
    command.add_argument(
        "--max-memory", help='such as "6GB" (default: four fifths of what is free)'
    )
    flags.add_config(command)


def _plan(options) -> int:
    chosen = plan(
        (options.heads, options.tokens, options.head_dim),
        options.labels,
        config=flags.config_of(options),
        device=pick_device(options.device),
        dtype=flags.DTYPES[options.dtype],
        backend=options.backend,
        route=options.route,
        max_memory=options.max_memory,
    )
    print(chosen)
    print(chosen.table())
    print(f"times: {chosen.rates}")
    return 0


def _add_tune(commands) -> None:
    command = commands.add_parser(
        "tune",
        help="measure the kernels' configurations on this GPU, once, and use the best from then on",
    )
    command.set_defaults(run=_tune)
    command.add_argument(
        "--tokens", type=int, nargs="+", default=[4096, 16384], help="N (default: 4096 16384)"
    )
    command.add_argument("--labels", type=int, default=21, help="K (default: 21)")
    command.add_argument("--heads", type=int, default=5, help="H (default: 5)")
    command.add_argument("--head-dim", type=int, default=64, help="D (default: 64)")
    command.add_argument("--device", help="cuda, cuda:1 (default: the best there is)")
    command.add_argument(
        "--dtype", choices=flags.DTYPES, default="float16", help="default: float16"
    )


def _tune(options) -> int:
    device, dtype = pick_device(options.device), flags.DTYPES[options.dtype]
    if device.type != "cuda":
        raise InputError(f"device is {str(device)!r}; kernels are tuned on CUDA and ROCm GPUs")
    choose("triton", device, dtype)
    for tokens in options.tokens:
        shape = (options.heads, tokens, options.head_dim)
        for timing in tuning.tune_operations(shape, options.labels, device, dtype):
            print(f"{timing.key}: {timing.text()}", flush=True)
        path = tuning.save(device)
    print(f"kept in {path}")
    return 0


def _add_bench(commands) -> None:
    command = commands.add_parser(
        "bench",
        help="measure every operation here, beside what people would use instead",
        description="Checks each against float64, then times it and its opponents side by side.",
    )
    command.set_defaults(run=_bench)
    tier = command.add_mutually_exclusive_group()
    tier.add_argument("--quick", action="store_true", help="a minute or two, small sizes")
    tier.add_argument("--full", action="store_true", help="an hour or so, large sizes too")
    command.add_argument("--op", nargs="+", metavar="NAME", help='such as walk, "head entropy"')
    command.add_argument("--tokens", type=int, nargs="+", help="N, instead of the usual sizes")
    command.add_argument("--device", help="cpu, cuda (default: cuda where it is)")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="JSON (default, of a whole run: bench/results/MACHINE.json)",
    )
    command.add_argument(
        "--update",
        action="store_true",
        help="with --op or --tokens: rows take the place of those in bench/results/MACHINE.json",
    )
    command.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("A.json", "B.json"),
        help="measure nothing; say what changed between two runs",
    )


def _bench(options) -> int:
    from nerve_fast.bench.results import load

    if options.compare:
        from nerve_fast.bench.compare import compare

        print("\n".join(compare(*(load(path) for path in options.compare))))
        return 0
    for tokens in options.tokens or ():
        if tokens < 16:
            raise InputError(f"--tokens is {tokens}; expected 16 or more")
    if options.update and (options.output or not (options.op or options.tokens)):
        raise InputError("--update goes with --op or --tokens, and without --output")
    from nerve_fast.bench.run import bench

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tier = "quick" if options.quick else "full" if options.full else "default"
    return bench(
        pick_device(device), tier, options.op, options.tokens, options.output, options.update
    )


def _add_demo(commands) -> None:
    command = commands.add_parser(
        "demo",
        help="segment 50 invented scenes with the shipped models, and say how well",
    )
    command.set_defaults(run=_demo)
    command.add_argument(
        "-o", "--output", type=Path, default=Path("demo"), metavar="DIR", help="default: demo"
    )
    command.add_argument(
        "--first-seed", type=flags.seed, help="of the scenes (default: 1000000, the held-out ones)"
    )
    command.add_argument("--scenes", type=int, default=50, help="held-out scenes (default: 50)")


def _demo(options) -> int:
    if options.scenes < 1:
        raise InputError(f"--scenes is {options.scenes}; expected 1 or more")
    prepare_folder(options.output)

    from nerve_fast.backbones.loading import hide_loading_bars
    from nerve_fast.demo import run
    from nerve_fast.pipeline import NervePipeline
    from nerve_fast.tiny.scenes import HELD_OUT_SEED

    hide_loading_bars()
    pipe = NervePipeline.from_pretrained("tiny", device="cpu")
    first = HELD_OUT_SEED if options.first_seed is None else options.first_seed
    scores = run(pipe, options.output, scenes=options.scenes, first_seed=first)
    kind = "held-out scenes" if first >= HELD_OUT_SEED else f"scenes from seed {first}"
    print(f"mIoU on {options.scenes} {kind}, default settings")
    prior = scores["prior"]
    for method, score in scores.items():
        gain = "" if method == "prior" else f"  {100 * (score - prior):+.1f}"
        print(f"  {method:34}{100 * score:5.1f}{gain}")
    print(f"pictures: {options.output}{os.sep}scene-*.png")
    return 0


def _doctor(options) -> int:
    """Say in words what is here, and of what is not, how to get it."""
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
    device = pick_device(None)
    print("  reference: ready\n  blocked: ready")
    print(f"  triton: {without_triton(device, torch.float16) or 'ready'}")
    try:
        resolve("auto")
    except InputError as error:
        print(f"  {error}")
    print("\nmodels")
    _report_models()
    return 0


def _report_models() -> None:
    from huggingface_hub import try_to_load_from_cache

    from nerve_fast.backbones.clip import DEFAULT_CLIP
    from nerve_fast.backbones.diffusion import DEFAULT_DIFFUSION

    print("  tiny: ships with the package")
    for source, file in (
        (DEFAULT_CLIP, "model.safetensors"),
        (DEFAULT_DIFFUSION, "unet/diffusion_pytorch_model.safetensors"),
    ):
        here = isinstance(try_to_load_from_cache(source, file), str)
        print(
            f"  {source}: "
            + ("in the cache" if here else f"not here; get it: hf download {source}")
        )
    print(f"  text embeddings are kept in {cache_folder()}")
