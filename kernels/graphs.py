"""CUDA graphs: what is started again and again on the same shapes is recorded and replayed.

A walk at N = 4096 is some twenty short kernels; started one by one, they wait for Python.
"""

import collections
import dataclasses
import logging
import threading
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

MAX_BYTES = 256 << 20
"""Work on more takes longer than its launches do, and a graph keeps all of its memory."""

KEPT = 4
"""Graphs, each with its own memory; the one not used for longest goes first."""


logger = logging.getLogger(__name__)


@dataclasses.dataclass
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor | None]
    outputs: tuple[Tensor, ...]


_recorded: collections.OrderedDict[Hashable, _Recorded] = collections.OrderedDict()
_seen: collections.OrderedDict[Hashable, None] = collections.OrderedDict()
_refused: set[Hashable] = set()
_lock = threading.Lock()


def is_capturing(device: torch.device) -> bool:
    """Whether a graph is being recorded, by whomever: nothing can be asked of the device then."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def replayed(
    function: Callable[..., tuple[Tensor, ...]],
    settings: Hashable,
    tensors: Sequence[Tensor | None],
    workspace: int = 0,
) -> tuple[Tensor, ...]:
    """``function(*tensors)``; from the second call with like arguments on, from a graph.

    Args:
        function: starts kernels on the current stream and never waits for them.
        settings: whatever ``function`` depends on besides its tensors.
        tensors: on one device.
        workspace: bytes that ``function`` needs beyond them, where they are many.

    Returns:
        Tensors of the caller's own.
    """
    first = tensors[0]
    if not _worth_recording(first.device, tensors, workspace):
        return function(*tensors)
    stream = torch.cuda.current_stream(first.device)
    like = tuple(None if x is None else (x.shape, x.stride(), x.dtype) for x in tensors)
    precision = torch.get_float32_matmul_precision()
    key = (settings, like, first.device, stream.cuda_stream, precision)
    with _lock:
        if key not in _recorded:
            if key not in _seen or key in _refused:
                _remember(_seen, key, None)
                return function(*tensors)
            try:
                _remember(_recorded, key, _record(function, tensors))
            except RuntimeError as error:
                # Slower, not wrong: the same kernels, started one by one.
                logger.warning("no CUDA graph of this walk: %s", error)
                _refused.add(key)
                return function(*tensors)
        _recorded.move_to_end(key)
        known = _recorded[key]
        # What was recorded in inference mode could not be written to outside it.
        with torch.inference_mode():
            for mine, given in zip(known.inputs, tensors, strict=True):
                if mine is not None:
                    mine.copy_(given)
            known.graph.replay()
        return tuple(output.clone() for output in known.outputs)


def _worth_recording(
    device: torch.device, tensors: Sequence[Tensor | None], workspace: int
) -> bool:
    return (
        device.type == "cuda"
        and not is_capturing(device)
        and workspace + sum(x.nbytes for x in tensors if x is not None) <= MAX_BYTES
    )


def _remember(kept: collections.OrderedDict, key: Hashable, value) -> None:
    kept[key] = value
    while len(kept) > KEPT:
        kept.popitem(last=False)


def _record(
    function: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor | None]
) -> _Recorded:
    inputs = [None if x is None else x.detach().clone() for x in tensors]
    # Copies may be laid out otherwise than the caller's tensors, which is another kernel to the
    # compiler: it must be loaded before the recording, within which nothing can be.
    function(*inputs)
    graph = torch.cuda.CUDAGraph()
    device = inputs[0].device
    # Other threads may go on allocating meanwhile; and whatever happens, the stream comes back.
    with (
        torch.cuda.device(device),
        torch.cuda.stream(torch.cuda.current_stream(device)),
        torch.cuda.graph(graph, capture_error_mode="thread_local"),
    ):
        outputs = function(*inputs)
    return _Recorded(graph, inputs, outputs)
