"""CUDA graphs: what is started again and again on the same shapes is recorded and replayed.

A walk at N = 4096 is some twenty short kernels; started one by one, they wait for Python.

On each device, graphs are recorded and replayed on one stream of their own. No two of them ever run
at the same time, so they share one pool of memory.
"""

import collections
import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence

import torch
from torch import Tensor

from nerve_fast.weights import is_capturing

MAX_BYTES = 256 << 20
"""What the graphs of one device may hold. A walk on more takes longer than its launches do."""

KEPT = 4
"""Graphs a device. The one that was not used for longest goes first."""

RECORDED_AT = 3
"""Which call with like arguments records: a shape that comes twice may well not come again."""

POISON = -12345.0
"""In outputs before the first replay, so that a graph that writes nothing shows."""

logger = logging.getLogger(__name__)

Function = Callable[..., tuple[Tensor, ...]]
"""Starts kernels on the current stream, never waits for them, and returns what they write."""


@dataclasses.dataclass
class _Recorded:
    """A graph, the tensors that it reads, and those that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor | None]
    outputs: tuple[Tensor, ...]

    @property
    def copied(self) -> int:
        """Bytes of the inputs, which lie outside the pool."""
        return sum(x.nbytes for x in self.inputs if x is not None)

    def replay(self, tensors: Sequence[Tensor | None]) -> None:
        for mine, given in zip(self.inputs, tensors, strict=True):
            if mine is not None:
                mine.copy_(given)
        self.graph.replay()


class _Graphs:
    """The graphs of one device, their stream, and the bytes that they hold."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.calls: collections.OrderedDict[Hashable, int] = collections.OrderedDict()
        self.refused: set[Hashable] = set()
        self.differ = False
        self.known: collections.OrderedDict[Hashable, _Recorded] = collections.OrderedDict()
        self.pool = torch.cuda.graph_pool_handle()
        self.held = 0

    def call(
        self, function: Function, key: Hashable, tensors: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...] | None:
        """``function(*tensors)`` from a graph, or ``None`` where ``key`` has none."""
        if key not in self.known and not self._recorded(function, key, tensors):
            return None
        self.known.move_to_end(key)
        known = self.known[key]
        # Made on the caller's stream, and written before it goes on: so they are the caller's own.
        results = tuple(torch.empty_like(output) for output in known.outputs)
        with self._own_stream():
            known.replay(tensors)
            for result, output in zip(results, known.outputs, strict=True):
                result.copy_(output)
        return results

    def _recorded(
        self, function: Function, key: Hashable, tensors: Sequence[Tensor | None]
    ) -> bool:
        """Count a call that has no graph, and record one at the call for it; whether it did."""
        self.calls[key] = self.calls.pop(key, 0) + 1
        while len(self.calls) > 4 * KEPT:
            self.calls.popitem(last=False)
        if self.differ or key in self.refused or self.calls[key] < RECORDED_AT:
            return False
        try:
            with self._own_stream():
                recorded, expected, held = self._record(function, tensors)
                right = self._replays_right(recorded, tensors, expected)
        except RuntimeError as error:
            # Slower, not wrong: the same kernels, started one by one.
            logger.warning("no CUDA graph of this walk: %s", error)
            self.refused.add(key)
            return False
        if not right:
            logger.warning(
                "CUDA graphs on %s are off: the first replay of one differs from its kernels "
                "started one by one. Results are right, and short walks slower.",
                self.device,
            )
            self.differ = True
            self.known.clear()
            return False
        # Whatever goes, the pool keeps its memory for the graphs to come.
        self.held += held
        if self.held > MAX_BYTES:
            logger.debug("graphs on %s hold %d bytes: no more of them", self.device, self.held)
            self.refused.add(key)
            return False
        self.known[key] = recorded
        while len(self.known) > KEPT:
            _, oldest = self.known.popitem(last=False)
            self.held -= oldest.copied
        return True

    def _record(
        self, function: Function, tensors: Sequence[Tensor | None]
    ) -> tuple[_Recorded, tuple[Tensor, ...], int]:
        """A graph of ``function``, what its kernels give when started, and the bytes it holds."""
        inputs = [None if x is None else x.detach().clone() for x in tensors]
        # Copies may be laid out otherwise than the caller's tensors, which is another kernel to the
        # compiler: it must be loaded before the recording, within which nothing can be.
        expected = function(*inputs)
        before = torch.cuda.memory_reserved(self.device)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on allocating meanwhile.
        graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
        try:
            if not torch.cuda.is_current_stream_capturing():
                raise RuntimeError(f"{self.stream} does not record")
            outputs = function(*inputs)
        finally:
            graph.capture_end()
        grown = max(torch.cuda.memory_reserved(self.device) - before, 0)
        recorded = _Recorded(graph, inputs, outputs)
        return recorded, expected, grown + recorded.copied

    def _replays_right(
        self,
        recorded: _Recorded,
        tensors: Sequence[Tensor | None],
        expected: tuple[Tensor, ...],
    ) -> bool:
        """Whether the first replay gives what is ``expected``, to the bit; waits for it."""
        for output in recorded.outputs:
            output.fill_(POISON)
        recorded.replay(tensors)
        pairs = zip(recorded.outputs, expected, strict=True)
        return all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in pairs)

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[None]:
        """The stream of the graphs, after all that the caller's has been given and before more."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        # In inference mode, because what is made in it cannot be written to outside it.
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream), torch.inference_mode():
            try:
                yield
            finally:
                current.wait_stream(self.stream)


_graphs: dict[torch.device, _Graphs] = {}
_lock = threading.Lock()


def replayed(
    function: Function,
    settings: Hashable,
    tensors: Sequence[Tensor | None],
    workspace: int = 0,
) -> tuple[Tensor, ...]:
    """``function(*tensors)``; from the third call with like arguments on, from a graph.

    Args:
        function: called with ``tensors`` or copies of them, also while a graph is recorded.
        settings: whatever ``function`` depends on besides its tensors.
        tensors: on one device.
        workspace: bytes that ``function`` needs beyond them, where they are many.

    Returns:
        Tensors of the caller's own.
    """
    device = _device_of(tensors)
    if not _worth_recording(device, tensors, workspace):
        return function(*tensors)
    like = tuple(None if x is None else (x.shape, x.stride(), x.dtype) for x in tensors)
    key = (settings, like, torch.get_float32_matmul_precision())
    with _lock:
        if device not in _graphs:
            _graphs[device] = _Graphs(device)
        results = _graphs[device].call(function, key, tensors)
    return function(*tensors) if results is None else results


def _device_of(tensors: Sequence[Tensor | None]) -> torch.device:
    return next(x.device for x in tensors if x is not None)


def _worth_recording(
    device: torch.device, tensors: Sequence[Tensor | None], workspace: int
) -> bool:
    return (
        device.type == "cuda"
        and not is_capturing(device)
        and workspace + sum(x.nbytes for x in tensors if x is not None) <= MAX_BYTES
    )
