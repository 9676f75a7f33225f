"""Peak memory of a run."""

import contextlib
import ctypes
import gc
import itertools
from pathlib import Path

import torch

from nerve_fast.bench.harness.machine import Run
from nerve_fast.bench.harness.profiling import profiled
from nerve_fast.utils import cores


class Memory:
    """Peak memory from now on, beyond what there is now."""

    def __init__(self, device: str):
        self.on_gpu = device == "cuda"
        gc.collect()
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_reserved()
            self.allocated_before = torch.cuda.memory_allocated()
        else:
            # What the heap holds of things that are gone would be used again unseen.
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL("libc.so.6").malloc_trim(0)
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
            self.before = _status("VmRSS")

    def peak(self) -> tuple[int | None, int | None]:
        """Bytes resident beyond those before, and in all; on a GPU those that torch reserved."""
        if self.on_gpu:
            torch.cuda.synchronize()
            most = torch.cuda.max_memory_reserved()
        else:
            most = _status("VmHWM")
        return (None, None) if most is None else (most - self.before, most)

    def allocated_on_gpu(self) -> int | None:
        """Bytes that torch allocated on a GPU beyond those before."""
        if not self.on_gpu:
            return None
        return torch.cuda.max_memory_allocated() - self.allocated_before


def allocated_on_cpu(run: Run) -> int | None:
    """Peak of bytes that ``run`` has torch allocate on the CPU, from a run of its own.

    ``None`` where a part of it ran on threads that the profiler does not see.
    """
    before = cores.on_threads
    profile = profiled(run, profile_memory=True)
    if cores.on_threads > before:
        return None
    events = profile.profiler.kineto_results.events()
    events = [event for event in events if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))


def _status(key: str) -> int | None:
    """A figure of this process in bytes, where the system tells it (Linux)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return 1024 * int(line.split()[1])
    return None
