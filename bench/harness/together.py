"""A function in several processes of one gloo group, each of which says what it found."""

import datetime
import io
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from nerve_fast.bench.harness.isolated import in_a_line

PATIENCE = datetime.timedelta(seconds=60)
"""How long a process waits for the others."""


def together(processes: int, function: Callable, *arguments) -> list:
    """What ``function(group, *arguments)`` gives in each of ``processes``, in the order of ranks.

    Args:
        processes: how many, with one thread each.
        function: defined in a module, as it is pickled by its name; gives tensors, numbers, texts
            or lists and dictionaries of them.

    Raises:
        RuntimeError: one raised an exception, or ended; the message names it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nerve_fast.bench.harness.together"])
    answers = []
    with tempfile.TemporaryDirectory(prefix="nerve-fast-group-") as folder:
        started = []
        place = f"file://{Path(folder, 'group')}"
        for rank in range(processes):
            receiver, sender = context.Pipe(duplex=False)
            given = (sender, place, rank, processes, function, arguments)
            process = context.Process(target=_answer, args=given)
            process.start()
            sender.close()
            started.append((process, receiver))
        for process, receiver in started:
            try:
                answers.append(receiver.recv())
            except EOFError:
                answers.append((None, "it ended without an answer"))
            process.join()
    wrong = [f"process {rank}: {said}" for rank, (_, said) in enumerate(answers) if said]
    if wrong:
        raise RuntimeError("; ".join(wrong))
    return [torch.load(io.BytesIO(answer), weights_only=True) for answer, _ in answers]


def _answer(sender, place: str, rank: int, processes: int, function, arguments) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", place, PATIENCE, processes, rank)
        answer = io.BytesIO()
        torch.save(function(dist.group.WORLD, *arguments), answer)
        sender.send((answer.getvalue(), None))
        if dist.is_initialized():
            dist.destroy_process_group()
    except Exception as error:  # told to who asked
        sender.send((None, in_a_line(error)))
