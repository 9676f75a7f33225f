"""Work shared by several processes."""

import contextlib
import datetime
import os
from collections.abc import Iterator

import torch

from nerve_fast.errors import InputError

LONGEST_WAIT = datetime.timedelta(days=30)
"""Of a process that is done for those that are not."""


@contextlib.contextmanager
def process_group(device: str | None) -> Iterator[tuple[int, int, torch.device | str | None]]:
    """This process's index, how many there are, and its device.

    Args:
        device: as the caller named it; of a group each process has one of its own of that kind.

    Raises:
        InputError: there should be a group, but not all that makes one is there.
    """
    if os.environ.get("WORLD_SIZE", "") in ("", "1"):
        yield 0, 1, device
        return
    from accelerate import PartialState

    if missing := {"RANK", "LOCAL_RANK", "MASTER_ADDR"} - set(os.environ):
        raise InputError(
            f"the environment says WORLD_SIZE={os.environ['WORLD_SIZE']} and not "
            f"{', '.join(sorted(missing))}; start with accelerate launch or torchrun, or unset it"
        )
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)
    try:
        yield state.process_index, state.num_processes, state.device
        # Who leaves with an error, a file that could not be read, takes the others along.
        state.wait_for_everyone()
    finally:
        state.destroy_process_group()


def wait(processes: int) -> None:
    """For the other processes of the group, to be where this one is."""
    if processes > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
