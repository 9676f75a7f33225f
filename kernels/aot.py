"""``python -m nerve_fast.kernels.aot``: compile every kernel for GPUs that are not there.

Each public operation and route is called on tensors without storage for each target and dtype. What
it would start is collected and compiled as it would be there. Printed for each kernel: registers a
thread, shared memory, bytes spilled, the matrix instructions, and whether loads are 16 bytes wide.
"""

import argparse
import itertools
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence

from nerve_fast.kernels.compiled import TARGETS, Compiled, compile_for
from nerve_fast.kernels.launch import interpreted
from nerve_fast.kernels.launches import DTYPES, launches


def _compile_share(share) -> list[Compiled | str]:
    target, dtype, quick, kernels, part, parts = share
    found = []
    for one in launches(target, DTYPES[dtype], quick)[part::parts]:
        name = one.kernel.__name__.removesuffix("_kernel")
        if kernels and name not in kernels:
            continue
        try:
            found.append(compile_for(target, dtype, one))
        except Exception as error:  # whatever a compiler throws is this tool's finding
            found.append(f"{target} {dtype} {name}: {type(error).__name__}: {error}")
    return found


def compile_all(
    targets: Sequence[str],
    dtypes: Sequence[str],
    quick: bool = False,
    kernels: Sequence[str] = (),
    processes: int | None = None,
) -> Iterator[Compiled | str]:
    """Compile all kernels; yields a :class:`Compiled`, or what went wrong as text."""
    processes = processes or os.cpu_count()
    shares = [
        (target, dtype, quick, kernels, part, processes)
        for target, dtype in itertools.product(targets, dtypes)
        for part in range(processes)
    ]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for found in pool.imap(_compile_share, shares):
            yield from found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nerve_fast.kernels.aot", description=__doc__)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--kernel", nargs="+", default=(), help="names, such as streaming_step")
    parser.add_argument("--quick", action="store_true", help="one shape, first configurations")
    options = parser.parse_args()
    if interpreted():
        print("TRITON_INTERPRET is set: there is nothing to compile. Unset it.", file=sys.stderr)
        return 2
    failed = 0
    for one in compile_all(options.target, options.dtype, options.quick, options.kernel):
        failed += isinstance(one, str) or one.unfit
        print(one, flush=True)
    print(f"{failed} failed, took more shared memory than there is, or spilled on sm_90")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
