"""A function in a separate process, so that its peak memory is its own and a crash stays there."""

import multiprocessing
from collections.abc import Callable

import torch


def isolated(function: Callable, *arguments):
    """``function(*arguments)`` in a fresh process, with as many threads as here.

    Args:
        function: defined in a module, as it is pickled by its name.

    Raises:
        RuntimeError: it raised an exception; the message names it.
        MemoryError: its process was killed, most likely for lack of memory.
    """
    # Forked from one that has imported everything and used nothing: fresh, and there at once.
    context = multiprocessing.get_context("forkserver")
    harness = "nerve_fast.bench.harness"
    context.set_forkserver_preload([f"{harness}.measure", f"{harness}.suite"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_answer, args=(sender, torch.get_num_threads(), function, arguments)
    )
    process.start()
    sender.close()
    try:
        answer, failed = receiver.recv()
    except EOFError:
        raise MemoryError("its process was killed, most likely for want of memory") from None
    finally:
        process.join()
    if failed:
        raise RuntimeError(answer)
    return answer


def in_a_line(error: BaseException) -> str:
    """The first line of what an error says, with its name."""
    said = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {said[:200]}"


def _answer(sender, threads: int, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(threads)
    try:
        sender.send((function(*arguments), False))
    except Exception as error:  # told to who asked
        sender.send((in_a_line(error), True))
