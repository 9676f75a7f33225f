"""The command ``tune``: the kernels' configurations measured on this GPU."""

from nerve_fast.cli import flags
from nerve_fast.dispatch import choose, pick_device, tuning
from nerve_fast.errors import InputError


def add_tune(commands) -> None:
    """Add ``tune`` to the subparsers of the command line."""
    command = commands.add_parser(
        "tune",
        help="measure the kernels' configurations on this GPU, once, and use the best from then on",
    )
    command.set_defaults(run=_run)
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


def _run(options) -> int:
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
