"""Pieces of work that are too small for several threads each, on the cores of a CPU, one a core."""

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

SMALL = 4096
"""Tokens up to which the threads of one walk wait for each other more than they share of it."""

MOST = 8
"""Pieces at a time, each of which has memory of its own."""

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_lock = threading.Lock()

on_threads = 0
"""Pieces that have run on threads of their own, where a profiler of another thread sees nothing."""


def at_once(pieces: int, tokens: int, device: torch.device) -> int:
    """How many of ``pieces`` on so many tokens run at a time; 1 is one after the other.

    A piece has one core where there are pieces for all cores, and few cores wait for the last ones.
    """
    cores = min(torch.get_num_threads(), MOST)
    if device.type != "cpu" or tokens > SMALL or cores < torch.get_num_threads():
        return 1
    rounds = -(-pieces // cores)
    idle = rounds * cores - pieces
    return cores if 4 * idle <= pieces else 1


def on_cores(
    function: Callable[[Piece], Result], pieces: Iterable[Piece], count: int
) -> list[Result]:
    """``[function(x) for x in pieces]``, ``count`` at a time; without gradients if above 1."""
    global on_threads
    pieces = list(pieces)
    if count == 1:
        return [function(piece) for piece in pieces]
    on_threads += len(pieces)
    return list(_pool(os.getpid(), count).map(torch.no_grad()(function), pieces))


def _pool(process: int, count: int) -> ThreadPoolExecutor:
    with _lock:
        return _started(process, count)


@functools.cache
def _started(process: int, count: int) -> ThreadPoolExecutor:
    """Threads with one core each; those of a process do not outlive a fork."""
    threads = torch.get_num_threads()
    ready = threading.Barrier(count + 1)
    pool = ThreadPoolExecutor(count, "nerve-fast", initializer=_take_one_core)
    for _ in range(count):
        pool.submit(ready.wait)
    ready.wait()
    # It is also what threads that start later have.
    torch.set_num_threads(threads)
    return pool


def _take_one_core() -> None:
    # A thread's first question sets it to what all have, so it must not come after.
    torch.get_num_threads()
    torch.set_num_threads(1)
