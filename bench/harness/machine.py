"""The machine that is measured: its name, its ceilings, its clock and its memory."""

import contextlib
import datetime
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import torch

from nerve_fast.bench.harness.floors import Floor
from nerve_fast.bench.harness.gpu_clock import GpuClock, Replay, recorded
from nerve_fast.blocked.precision import bfloat16_pays, has_bfloat16
from nerve_fast.utils.provenance import commit, version

Run = Callable[[], object]

ENOUGH_SECONDS, MOST_ROUNDS = 0.5, 100
"""A case is repeated until it has run so long in all, at least three times."""


def dtype_of_networks(device: str) -> str:
    """On a CPU that which networks have there by default, on a GPU bfloat16."""
    return "bfloat16" if device != "cpu" or bfloat16_pays() else "float32"


class Machine:
    """One device, a CPU or a GPU.

    Attributes:
        bandwidth: bytes a second, read and written, once :meth:`measure_ceilings` has run.
        cache_bandwidth: the same where everything stays in a GPU's cache.
        matrix_rates: operations a second of large products, by the name of the dtype; of 16 bits at
            least those of float32, which stand in where they are faster.
        own_rates: the same as they come, of the dtypes that the hardware has instructions for.
        cache_bytes: of the last level of cache.
    """

    def __init__(self, device: str | torch.device | None = None):
        best = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device or best)
        self.on_gpu = self.device.type == "cuda"
        self.bandwidth = self.cache_bandwidth = None
        self.matrix_rates: dict[str, float] = {}
        self.own_rates: dict[str, float] = {}
        self._gpu_clock: GpuClock | None = None
        if self.on_gpu:
            self.cache_bytes = torch.cuda.get_device_properties(self.device).L2_cache_size
            self._gpu_clock = GpuClock(self.device, self.cache_bytes)
        else:
            self.cache_bytes = cpu_cache()

    @property
    def slug(self) -> str:
        """The machine as the name of a file."""
        name = self.describe()["device"]
        if not self.on_gpu:
            name += f" {torch.get_num_threads()} threads"
        return re.sub(r"\W+", "-", name).strip("-").lower()

    def describe(self) -> dict:
        """The hardware and software that results belong to."""
        return {
            "device": torch.cuda.get_device_name(self.device) if self.on_gpu else cpu_name(),
            "kind": self.device.type,
            "bfloat16_products": True if self.on_gpu else bfloat16_pays(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory": psutil.virtual_memory().total,
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": version("triton"),
            "cuda": torch.version.cuda or torch.version.hip,
            "interpreted": interpreted(),
            "commit": commit(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }

    def ceilings(self) -> dict:
        """The ceilings that :meth:`measure_ceilings` found."""
        return {
            "bandwidth": self.bandwidth,
            "cache_bandwidth": self.cache_bandwidth,
            "matrix_rates": self.matrix_rates,
            "own_rates": self.own_rates,
            "launch_seconds": self._gpu_clock and self._gpu_clock.launch,
        }

    def measure_ceilings(self) -> None:
        """Bandwidth of memory and of a GPU's cache, bytes read and written; rates of products."""
        if self._gpu_clock is not None:
            self._gpu_clock.calibrate()
        large = torch.ones(1 << (29 if self.on_gpu else 26), device=self.device)
        target = torch.empty_like(large)
        self.bandwidth = 2 * large.nbytes / self._usual(lambda: target.copy_(large))
        if self.on_gpu:
            # As much as a stored S of 4096 tokens: it stays there. Written and read, and read.
            few, half = large[: 1 << 23], large[: 1 << 22]
            written = target[: 1 << 22]
            copies = self.graphed(lambda: [written.copy_(half) for _ in range(50)])
            sums = self.graphed(lambda: [few.sum() for _ in range(50)])
            self.cache_bandwidth = max(
                50 * 2 * half.nbytes / self._usual(copies, True),
                50 * few.nbytes / self._usual(sums, True),
            )
        size = 8192 if self.on_gpu else 2048
        for dtype in ("float32", "float16", "bfloat16"):
            multiplied = dtype == "float32" or (dtype == "bfloat16" and has_bfloat16())
            if self.on_gpu or multiplied:
                a, b = torch.randn(2, size, size, device=self.device).to(getattr(torch, dtype))
                self.own_rates[dtype] = 2 * size**3 / self._usual(lambda a=a, b=b: a @ b)
        # Where a CPU cannot multiply 16 bits fast, 32 are what products there take.
        for dtype in ("float32", "float16", "bfloat16"):
            self.matrix_rates[dtype] = max(self.own_rates.get(dtype, 0), self.own_rates["float32"])

    def _usual(self, run: Run, replayed: bool = False) -> float:
        """The median, as rows have it: a best ceiling over a usual row would flatter nobody."""
        run()
        return statistics.median(self.clock(run, 10, replayed))

    def clock(self, run: Run, rounds: int, replayed: bool = False) -> list[float]:
        """Seconds of each of the rounds, on a GPU by :class:`GpuClock`.

        Args:
            run: is called once a round.
            rounds: how many.
            replayed: it replays a graph.
        """
        if self._gpu_clock is None:
            return [seconds_of(run) for _ in range(rounds)]
        return self._gpu_clock(run, rounds, replayed)

    def python_seconds(self, run: Run) -> float | None:
        """Seconds of Python in a call that only queues work; ``None`` on a CPU."""
        return self._gpu_clock and self._gpu_clock.python_seconds(run)

    def graphed(self, run: Run) -> Replay | None:
        """``run`` as the replay of a graph, so that Python's launches are not timed.

        ``None`` where it cannot be recorded.
        """
        return recorded(run)

    def tidy(self) -> None:
        """Release memory that only torch's allocator still holds."""
        if self.on_gpu:
            torch.cuda.empty_cache()

    def least(self, works: Iterable[Floor], dtype: str) -> tuple[float, float, float] | None:
        """Seconds, operations and bytes of the fastest of ``works``: no version can be faster."""
        if self.bandwidth is None:
            return None
        rate = self.matrix_rates[dtype]
        known = (
            (work.seconds(rate, self.bandwidth), work.operations, work.moved) for work in works
        )
        return min(known, default=None)

    def copies(self, works: Iterable[Floor], dtype: str) -> int:
        """Sets of inputs to take in turn, so that a cache does not hold what memory should bring.

        One where the operations, not the bytes, take the time: there a cache flatters nobody.
        """
        if self.on_gpu or self.bandwidth is None:
            # A GPU's cache is emptied between rounds.
            return 1
        rate = self.matrix_rates[dtype]
        moved = [
            work.moved
            for work in works
            if work.moved / self.bandwidth > work.operations / rate
            and work.moved < 2 * self.cache_bytes
        ]
        return min(math.ceil(2 * self.cache_bytes / min(moved)), 8) if moved else 1


def seconds_of(run: Run) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rounds_for(seconds: float) -> int:
    """How often to repeat what takes ``seconds``."""
    return min(max(math.ceil(ENOUGH_SECONDS / max(seconds, 1e-9)), 3), MOST_ROUNDS)


def quantiles(seconds: list[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    if len(seconds) == 1:
        return (seconds[0],) * 3
    low, *_, high = statistics.quantiles(seconds, n=5, method="inclusive")
    return statistics.median(seconds), low, high


def cpu_name() -> str:
    """The processor's name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cpu_cache() -> int:
    """Bytes of the largest cache of the first core; 32 MiB where the system does not tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(path.read_text().strip().removesuffix("K")) << 10)
    return max(sizes, default=32 << 20)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which says nothing about speed."""
    return os.environ.get("TRITON_INTERPRET") == "1"
