"""A GPU's clock: its own events, the cache emptied by reading, the launch taken off."""

import statistics
import time
from collections.abc import Callable

import torch

CYCLES_A_SECOND = 2e9
"""At most what GPUs run at: a wait of so many cycles is no shorter than a second."""

LEAST_HOLD, MOST_HOLD = 200e-6, 20e-3
"""Seconds that a GPU is kept waiting while a run is queued behind."""


class Replay:
    """A recorded CUDA graph, called in place of the run that it was recorded from.

    Attributes:
        output: what each replay writes to.
    """

    def __init__(self, run: Callable, graph: torch.cuda.CUDAGraph, output):
        # What it was recorded from holds the memory that it reads.
        self._run, self._graph, self.output = run, graph, output

    def __call__(self):
        self._graph.replay()
        return self.output


def recorded(run: Callable) -> Replay | None:
    """``run`` as a graph; ``None`` where it asks the GPU for something and cannot be one."""
    graph = torch.cuda.CUDAGraph()
    try:
        run()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            output = run()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return Replay(run, graph, output)


class GpuClock:
    """Times runs on one GPU.

    Args:
        device: the GPU.
        cache_bytes: of its last level of cache.

    Attributes:
        launch: seconds between two events that belong to the launch and not to the run, for
            ``kernel`` (started one by one) and ``graph``; 0 before :meth:`calibrate`.
    """

    def __init__(self, device: torch.device, cache_bytes: int):
        self.device, self.cache_bytes = device, cache_bytes
        self.launch = {"kernel": 0.0, "graph": 0.0}

    def calibrate(self) -> None:
        """Measure :attr:`launch`.

        Two events with nothing between them are the launch of kernels. What a graph takes longer
        for the same tiny kernel is the launch of a graph: the kernel's own time cancels.
        """
        self.launch = {"kernel": 0.0, "graph": 0.0}
        one = torch.ones(1, device=self.device)

        def tiny():
            return one.add_(1)

        nothing = statistics.median(self(lambda: None, 20))
        kernel = statistics.median(self(tiny, 20))
        graph = statistics.median(self(recorded(tiny), 20))
        self.launch = {"kernel": nothing, "graph": nothing + max(graph - kernel, 0.0)}

    def __call__(self, run: Callable, rounds: int, replayed: bool = False) -> list[float]:
        """Seconds of each round, without the launch.

        Args:
            run: is started once a round.
            rounds: how many.
            replayed: it replays a graph.
        """
        # Written memory would be written back while the run is timed; what was read is not.
        other = torch.ones(max(self.cache_bytes // 2, 1), device=self.device)
        total = torch.empty((), device=self.device)
        hold = min(max(2 * self.python_seconds(run, 1), LEAST_HOLD), MOST_HOLD)
        events = []
        for _ in range(rounds):
            torch.sum(other, out=total)
            # Meanwhile all of the run is queued, so that Python is not timed.
            torch.cuda._sleep(int(hold * CYCLES_A_SECOND))
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            # Queues are not endless.
            end.synchronize()
            events.append((start, end))
        launch = self.launch["graph" if replayed else "kernel"]
        return [max(start.elapsed_time(end) / 1e3 - launch, 0.0) for start, end in events]

    def python_seconds(self, run: Callable, rounds: int = 5) -> float:
        """Median of the wall-clock seconds until a call returns, the GPU having nothing to do."""
        seconds = []
        for _ in range(rounds):
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        return statistics.median(seconds)
