"""Jobs in processes side by side; one that fails, dies or hangs takes no other with it."""

import concurrent.futures
import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence

from nerve_fast.bench.harness.isolated import in_a_line


def side_by_side(
    function: Callable, shares: Sequence[tuple], seconds: float
) -> Iterator[tuple[tuple, object, str]]:
    """``function(*share)`` for each share, first come first served, one process a core.

    Args:
        function: defined in a module, as it is pickled by its name.
        shares: arguments of each call.
        seconds: after so long those that have not answered have failed.

    Yields:
        In the order of ``shares``: the share, what was returned or ``None``, and what went wrong or
        nothing.
    """
    if not shares:
        return
    deadline = time.monotonic() + seconds
    waiting = queue.SimpleQueue()
    for number in range(len(shares)):
        waiting.put(number)
    answers: dict[int, tuple[object, str]] = {}

    def work() -> None:
        worker = None
        try:
            while True:
                number = waiting.get_nowait()
                worker = worker or _Worker(function)
                result, problem = worker.ask(shares[number], deadline)
                answers[number] = (result, problem)
                if problem:
                    # A GPU's error stays with the process that met it.
                    worker.end()
                    worker = None
        except queue.Empty:
            if worker is not None:
                worker.end()

    threads = min(len(shares), os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work) for _ in range(threads)]:
            done.result()
    for number, share in enumerate(shares):
        yield share, *answers[number]


class _Worker:
    """A fresh process that answers one share after the other."""

    def __init__(self, function: Callable):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, function), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, share: tuple, deadline: float) -> tuple[object, str]:
        """Return the result of the function and the error, if any."""
        left = deadline - time.monotonic()
        if left <= 0:
            return None, "TimeoutError: there was no time left to start it"
        try:
            self._pipe.send(share)
            if not self._pipe.poll(left):
                return None, "TimeoutError: it has not answered in time"
            return self._pipe.recv()
        except (EOFError, OSError):
            return None, "its process died"

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _answer(pipe, function: Callable) -> None:
    while True:
        share = pipe.recv()
        try:
            answer = function(*share), ""
        except Exception as error:  # told to who asked
            answer = None, in_a_line(error)
        pipe.send(answer)
