"""CUDA graphs: what is started again and again on the same shapes is recorded and replayed.

A walk at N = 4096 is some twenty short kernels; started one by one, they wait for Python.
"""

import collections
import dataclasses
import threading
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

MAX_INPUT_BYTES = 64 << 20
"""Larger inputs keep the device busy for longer than their launches take."""

KEPT = 8
"""Graphs, each with its own memory; the one not used for longest goes first."""


@dataclasses.dataclass
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor | None]
    output: Tensor


_recorded: collections.OrderedDict[Hashable, _Recorded] = collections.OrderedDict()
_seen: collections.OrderedDict[Hashable, None] = collections.OrderedDict()
_lock = threading.Lock()


def replayed(
    function: Callable[..., Tensor], settings: Hashable, tensors: Sequence[Tensor | None]
) -> Tensor:
    """``function(*tensors)``; from the second call with like arguments on, from a graph.

    Args:
        function: starts kernels on the current stream and never waits for them.
        settings: whatever ``function`` depends on besides its tensors.
        tensors: on one device.

    Returns:
        A tensor of the caller's own.
    """
    first = tensors[0]
    if not _worth_recording(first.device, tensors):
        return function(*tensors)
    stream = torch.cuda.current_stream(first.device)
    like = tuple(None if x is None else (x.shape, x.stride(), x.dtype) for x in tensors)
    precision = torch.get_float32_matmul_precision()
    key = (settings, like, first.device, stream.cuda_stream, precision)
    with _lock:
        if key not in _recorded:
            if key not in _seen:
                # The first call compiles kernels and fills the allocator's caches.
                _remember(_seen, key, None)
                return function(*tensors)
            _remember(_recorded, key, _record(function, tensors))
        _recorded.move_to_end(key)
        known = _recorded[key]
        for mine, given in zip(known.inputs, tensors, strict=True):
            if mine is not None:
                mine.copy_(given)
        known.graph.replay()
        return known.output.clone()


def _worth_recording(device: torch.device, tensors: Sequence[Tensor | None]) -> bool:
    return (
        device.type == "cuda"
        and not torch.cuda.is_current_stream_capturing()
        and sum(x.nbytes for x in tensors if x is not None) <= MAX_INPUT_BYTES
    )


def _remember(kept: collections.OrderedDict, key: Hashable, value) -> None:
    kept[key] = value
    while len(kept) > KEPT:
        kept.popitem(last=False)


def _record(function: Callable[..., Tensor], tensors: Sequence[Tensor | None]) -> _Recorded:
    inputs = [None if x is None else x.detach().clone() for x in tensors]
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on allocating while this one records.
    with (
        torch.cuda.device(tensors[0].device),
        torch.cuda.graph(graph, capture_error_mode="thread_local"),
    ):
        output = function(*inputs)
    return _Recorded(graph, inputs, output)
