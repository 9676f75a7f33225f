"""Work shared by several processes."""

import contextlib
import datetime
import os
import re
from collections.abc import Iterator

import torch

from nerve_fast.errors import InputError

LONGEST_WAIT = datetime.timedelta(days=30)
"""How long a process that is done waits for the others."""


def process_count(name: str) -> int:
    """Return how many processes there are according to the environment.

    Args:
        name: ``"WORLD_SIZE"``, of all, or ``"LOCAL_WORLD_SIZE"``, on this machine.

    Raises:
        InputError: it is not a whole number of 1 or more.
    """
    return _number(name, 1, 10**6) if os.environ.get(name) else 1


def _number(name: str, least: int, most: int) -> int:
    text = os.environ[name]
    # More digits than any limit has are not looked at.
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise InputError(
            f"the environment says {name}={text[:40]!r}; expected a number from {least} to {most}: "
            "start with accelerate launch or torchrun, or unset it"
        )
    return int(text)


@contextlib.contextmanager
def process_group(
    device: torch.device | str | None,
) -> Iterator[tuple[int, int, torch.device | str | None]]:
    """Yield the index of this process, the number of processes, and the device of this one.

    Args:
        device: as the caller named it; of a group each process has one of its own of that kind.

    Raises:
        InputError: there should be a group, but not all that makes one is there.
    """
    if process_count("WORLD_SIZE") == 1:
        yield 0, 1, device
        return
    from accelerate import PartialState

    if missing := {"RANK", "LOCAL_RANK", "MASTER_ADDR"} - set(os.environ):
        raise InputError(
            f"the environment says WORLD_SIZE={os.environ['WORLD_SIZE']} and not "
            f"{', '.join(sorted(missing))}; start with accelerate launch or torchrun, or unset it"
        )
    for name in ("RANK", "LOCAL_RANK"):
        _number(name, 0, process_count("WORLD_SIZE") - 1)
    if os.environ.get("MASTER_PORT"):
        _number("MASTER_PORT", 0, 65535)
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    try:
        state = PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"the processes of the group do not find one another: {reason}") from error
    try:
        yield state.process_index, state.num_processes, state.device
        # Who leaves with an error, a file that could not be read, takes the others along.
        state.wait_for_everyone()
    finally:
        state.destroy_process_group()


def shared_group(processes: int):
    """The group of all processes, for what they do together; ``None`` for a single one."""
    return torch.distributed.group.WORLD if processes > 1 else None


def wait(processes: int) -> None:
    """Wait until all processes of the group have come to this point."""
    if processes > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
