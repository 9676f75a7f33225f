"""One measurement in a process of its own: its time, and its peak memory beyond the inputs."""

import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

WARM_TOKENS = 1024


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Median seconds of the runs, peak resident bytes beyond the inputs, and those of all."""

    seconds: float
    peak_memory: int
    resident: int


def measure(
    make: Callable[..., Callable[[], object]], tokens: int, *arguments, runs: int = 3
) -> Measurement:
    """Time ``make(tokens, *arguments)()`` in a fresh process: inputs are made outside the time.

    The same on few tokens goes first, so that the libraries' own set-up and code are there.

    Args:
        make: a module's function that makes the inputs and returns what is to be timed.
        tokens: the size of the problem.
        runs: timed runs, after one that is not counted; a single run is counted itself.
    """
    arguments = (tokens, *arguments)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, make, arguments, runs))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(
            f"{make.__name__}{arguments} died, most likely for want of memory"
        ) from None
    finally:
        process.join()


def _child(sender, make, arguments, runs):
    torch.manual_seed(0)
    with torch.inference_mode():
        make(WARM_TOKENS, *arguments[1:])()
        run = make(*arguments)
        before = reset_peak()
        seconds = []
        for _ in range(runs + (runs > 1)):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        seconds = seconds[1:] if runs > 1 else seconds
        sender.send(Measurement(statistics.median(seconds), peak() - before, peak()))


def reset_peak() -> int:
    """Forget the peak resident memory so far; returns what is resident now, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """Peak resident memory since :func:`reset_peak`, in bytes."""
    return _status("VmHWM")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")
