"""Rows of a grid that are shared by the processes of a group, and what these tell one another.

Each process holds a run of whole rows of the grid, in the order of their ranks. The walk is written
against a :class:`Share`; in a process by itself that is all of the grid, and nothing is exchanged.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nerve_fast.errors import InputError, quoted

T = TypeVar("T")


class ExchangeError(InputError):
    """The processes of a group have lost one another."""


@contextlib.contextmanager
def _exchanging() -> Iterator[None]:
    try:
        yield
    # Of gloo and NCCL: a closed connection, or a time that is up.
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExchangeError(
            "the processes of the group lost one another, as one has ended or waits elsewhere: "
            f"{reason}; start all of them again"
        ) from error


def heights(height: int, processes: int) -> list[int]:
    """How many of ``height`` rows of a grid each process holds, where they share alike."""
    return [height // processes + (i < height % processes) for i in range(processes)]


class Share:
    """The rows of a grid that this process holds.

    Args:
        grid: ``(h, w)`` of all processes together.
        held: rows of the grid that each process holds; ``None``: this one all of them.
        group: of the processes; ``None`` for a process by itself.

    Attributes:
        grid: as given.
        tokens: ``N`` of all processes.
        index: of this process, from 0.
        starts: the first token of each process, and ``N`` at the end.
    """

    def __init__(self, grid: tuple[int, int], held: Sequence[int] | None = None, group: Any = None):
        self.grid, self.group = grid, group
        self.tokens = math.prod(grid)
        self.index = 0 if group is None else dist.get_rank(group)
        self.starts = [0]
        for rows in held or grid[:1]:
            self.starts.append(self.starts[-1] + rows * grid[1])

    @property
    def processes(self) -> int:
        """How many share the grid."""
        return len(self.starts) - 1

    @property
    def alone(self) -> bool:
        """Whether this process holds all of it, so that nothing is exchanged."""
        return self.processes == 1

    @property
    def own(self) -> slice:
        """The tokens of this process."""
        return slice(self.starts[self.index], self.starts[self.index + 1])

    @property
    def own_grid(self) -> tuple[int, int]:
        """``(h, w)`` of the rows of this process."""
        return ((self.own.stop - self.own.start) // self.grid[1], self.grid[1])

    def held(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Which of ``tokens`` of the grid this process holds: a mask, and where among its own."""
        mine = (tokens >= self.own.start) & (tokens < self.own.stop)
        return mine, tokens[mine] - self.own.start

    def total(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over all processes, in an order that is the same in every run."""
        return self._reduced(x, "SUM")

    def total_(self, x: Tensor) -> Tensor:
        """As :meth:`total`, written to ``x`` itself, which is contiguous on all processes."""
        return self._reduced_(x, "SUM")

    def largest(self, x: Tensor) -> Tensor:
        """The largest of each element over all processes."""
        return self._reduced(x, "MAX")

    def _reduced(self, x: Tensor, operation: str) -> Tensor:
        if self.alone:
            return x
        # A copy: the order of its elements in memory has to be that of the others.
        copy = torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)
        return self._reduced_(copy, operation)

    def _reduced_(self, x: Tensor, operation: str) -> Tensor:
        if not self.alone:
            with _exchanging():
                dist.all_reduce(x, getattr(dist.ReduceOp, operation), group=self.group)
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """``x`` of the first process, for all of them."""
        return x if self.alone else self._broadcast(x.contiguous(), 0)

    def _broadcast(self, x: Tensor, owner: int) -> Tensor:
        with _exchanging():
            dist.broadcast(x, dist.get_global_rank(self.group, owner), group=self.group)
        return x

    def gathered(self, x: Tensor) -> Tensor:
        """The rows of all processes, ``(N, C)``, from the own ones ``(n, C)``."""
        if self.alone:
            return x
        out = x.new_empty(self.tokens, *x.shape[1:])
        out[self.own] = x
        for owner in range(self.processes):
            self._broadcast(out[self.starts[owner] : self.starts[owner + 1]], owner)
        return out

    def picked(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Rows ``tokens`` of the grid, the same on all processes.

        Args:
            x: the own rows, ``(…, n, C)``.
            tokens: ``(m,)`` int64, the same on all processes.

        Returns:
            ``(…, m, C)``, to the bit.
        """
        if self.alone:
            return x[..., tokens, :]
        out = x.new_zeros(*x.shape[:-2], len(tokens), x.shape[-1])
        mine, local = self.held(tokens)
        out[..., mine, :] = x[..., local, :]
        # All but one process add zeros.
        return self.total(out)

    def in_turn(self, x: Tensor) -> Iterator[Tensor]:
        """The rows of one process after the other, ``(…, n, C)`` each, on all of them."""
        if self.alone:
            yield x
            return
        for owner in range(self.processes):
            rows = self.starts[owner + 1] - self.starts[owner]
            its = torch.empty(*x.shape[:-2], rows, x.shape[-1], dtype=x.dtype, device=x.device)
            if owner == self.index:
                its.copy_(x)
            yield self._broadcast(its, owner)

    def halo(self, radius: int) -> tuple[int, int]:
        """How many rows of the grid within ``radius`` lie above and below the own ones."""
        height, width = self.grid
        return (
            min(radius, self.own.start // width),
            min(radius, height - self.own.stop // width),
        )

    def around(self, x: Tensor, radius: int) -> Tensor:
        """The own rows ``(n, C)`` with those of :meth:`halo` before and after them."""
        if self.alone:
            return x
        above, below = (rows * self.grid[1] for rows in self.halo(radius))
        out = x.new_empty(above + len(x) + below, *x.shape[1:])
        out[above : above + len(x)] = x
        first = self.own.start - above
        sent, received = [], []
        for peer in range(self.processes):
            start, stop = self.starts[peer], self.starts[peer + 1]
            if peer == self.index:
                continue
            wide = radius * self.grid[1]
            # What a neighbour below wants lies above it, and the other way round.
            wanted = (start - wide, start) if peer > self.index else (stop, stop + wide)
            low, high = max(wanted[0], self.own.start), min(wanted[1], self.own.stop)
            if low < high:
                sent.append((out[low - first : high - first], peer))
            low, high = max(start, first), min(stop, first + len(out))
            if low < high:
                received.append((out[low - first : high - first], peer))
        self._passed(sent, received)
        return out

    def joined(self, x: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """The own rows ``(n, C)`` of a sum to which each process adds rows that it has.

        Args:
            x: what this process adds, the rows of its span.
            spans: first token of what each process adds, and the one after the last.
        """
        if self.alone:
            return x
        low, high = self.own.start, self.own.stop
        out = x.new_zeros(high - low, *x.shape[1:])
        sent, received, pieces = [], [], []
        for peer, (first, last) in enumerate(spans):
            start, stop = max(first, low), min(last, high)
            if peer == self.index:
                pieces.append((start, x[max(start - first, 0) : max(stop - first, 0)]))
            elif start < stop:
                pieces.append((start, x.new_empty(stop - start, *x.shape[1:])))
                received.append((pieces[-1][1], peer))
            own = spans[self.index]
            start, stop = max(own[0], self.starts[peer]), min(own[1], self.starts[peer + 1])
            if peer != self.index and start < stop:
                sent.append((x[start - own[0] : stop - own[0]].contiguous(), peer))
        self._passed(sent, received)
        for start, piece in pieces:
            out[start - low : start - low + len(piece)] += piece
        return out

    def to_first(self, x: Tensor) -> Tensor | None:
        """The rows of all processes, ``(N, C)``, on the first of them."""
        if self.alone:
            return x
        if self.index:
            self._passed([(x.contiguous(), 0)], [])
            return None
        out = x.new_empty(self.tokens, *x.shape[1:])
        out[self.own] = x
        others = range(1, self.processes)
        self._passed([], [(out[self.starts[i] : self.starts[i + 1]], i) for i in others])
        return out

    def _passed(self, sent, received) -> None:
        """Tensors to other processes, and others from them: pairs of a tensor and a process."""
        with _exchanging():
            calls = [
                dist.P2POp(call, x, dist.get_global_rank(self.group, peer), self.group)
                for call, pairs in ((dist.isend, sent), (dist.irecv, received))
                for x, peer in pairs
            ]
            for work in dist.batch_isend_irecv(calls) if calls else ():
                work.wait()

    def each(self, text: str) -> list[str]:
        """A short text of each process."""
        return [text] if self.alone else _texts(self.group, text)

    def agreed(self, make: Callable[[], T]) -> T:
        """``make()``; where it refuses its input on one process, all of them refuse.

        Raises:
            InputError, ValueError, TypeError: as ``make`` does, or saying what another did.
        """
        return make() if self.alone else _agreed(self.group, make)


def shared(group: Any, describe: Callable[[], dict]) -> Share:
    """The share of this process in a walk that all processes of ``group`` take part in.

    Args:
        group: a ``torch.distributed`` process group.
        describe: checks the arguments of this process, and tells what has to be the same on all of
            them, by name; ``grid`` among them, and ``tokens``, the number that this process holds.

    Raises:
        InputError: something differs, or the shares do not add up to the grid; on all processes.
        TypeError: ``group`` is no group that this process is in.
    """
    check_group(group)
    own = _agreed(group, describe)
    said = [json.loads(text) for text in _texts(group, json.dumps(own))]
    for name, first in said[0].items():
        for process, its in enumerate(said):
            if name != "tokens" and its[name] != first:
                raise InputError(
                    f"{name} is {first} on process 0 of the group and {its[name]} on process "
                    f"{process}; expected the same on all of them"
                )
    held, (height, width) = [its["tokens"] for its in said], said[0]["grid"]
    if sum(held) != height * width:
        raise InputError(
            f"the processes of the group hold {' + '.join(map(str, held))} = {sum(held)} tokens; "
            f"expected those of the grid, {height} × {width} = {height * width}"
        )
    for process, tokens in enumerate(held):
        if tokens % width:
            raise InputError(
                f"process {process} of the group holds {tokens} tokens; expected whole rows of the "
                f"grid, {width} tokens each"
            )
    return Share((height, width), [tokens // width for tokens in held], group)


def check_group(group: Any) -> None:
    """Raise a :class:`TypeError` where ``group`` is no process group that this process is in."""
    if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(
            f"group is {quoted(group)}; expected a torch.distributed process group that this "
            "process is in, or None"
        )


def agreed(group: Any, make: Callable[[], T]) -> T:
    """:meth:`Share.agreed` before there is a share; ``group`` may be ``None``."""
    return make() if group is None else _agreed(group, make)


def check_same(group: Any, what: str, text: str) -> None:
    """End all processes where they do not have the same ``text``: they are at different things.

    Raises:
        ExchangeError: they have not.
    """
    if group is not None and len(set(_texts(group, text))) > 1:
        raise ExchangeError(
            f"the processes of the group differ in {what}; expected the same on all"
        )


def carries(group: Any, device: torch.device) -> bool:
    """Whether ``group`` exchanges tensors on ``device``."""
    return device.type in dist.get_backend_config(group)


def _agreed(group: Any, make: Callable[[], T]) -> T:
    result: Any = None
    own: Exception | None = None
    try:
        result = make()
    except (ValueError, TypeError) as error:
        own = error
    said = _texts(group, "" if own is None else str(own) or type(own).__name__)
    if own is not None:
        raise own
    for process, text in enumerate(said):
        if text:
            raise InputError(f"process {process} of the group refuses its input: {text}")
    return result


def _texts(group: Any, text: str) -> list[str]:
    """A text of each process, as bytes: objects would have to be unpickled."""
    device = torch.device("cpu")
    if not carries(group, device):
        device = torch.device("cuda", torch.cuda.current_device())
    data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    with _exchanging():
        count = torch.tensor([len(data)], device=device)
        counts = [torch.empty_like(count) for _ in range(dist.get_world_size(group))]
        dist.all_gather(counts, count, group=group)
        longest = max(int(one) for one in counts)
        padded = data.new_zeros(max(longest, 1))
        padded[: len(data)] = data
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=group)
    return [
        bytes(part[: int(one)].tolist()).decode() for part, one in zip(parts, counts, strict=True)
    ]
