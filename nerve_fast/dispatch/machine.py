"""Which devices the machine has, and how much memory is free."""

from pathlib import Path

import psutil
import torch

from nerve_fast.errors import InputError

CGROUP = Path("/sys/fs/cgroup")


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device that was asked for, or the best one: CUDA or ROCm, then MPS, then the CPU.

    Raises:
        InputError: the device is not available.
    """
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    here = [name for name, is_here in present.items() if is_here]
    if device is None:
        return torch.device("cuda" if "cuda" in here else here[-1])
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in here:
        raise InputError(
            f"device is {str(device)!r}; this machine and this torch have {', '.join(here)}"
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device is {str(device)!r}; this machine has {torch.cuda.device_count()} of the kind"
        )
    return chosen


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on ``device``; on a CPU cgroup limits count."""
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(
                f"device is {str(device)!r}, which this machine does not have; pass max_memory to "
                "plan for another machine"
            )
        if torch.cuda.is_current_stream_capturing():
            # The driver must not be asked while a graph is recorded.
            total = torch.cuda.get_device_properties(device).total_memory
            return total - torch.cuda.memory_reserved(device)
        free, _ = torch.cuda.mem_get_info(device)
        # What the caching allocator holds without using it can be used again.
        held = torch.cuda.memory_stats_as_nested_dict(device)
        return free + sum(
            sign * held.get(kind, {}).get("all", {}).get("current", 0)
            for kind, sign in (("reserved_bytes", 1), ("allocated_bytes", -1))
        )
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return int(min(psutil.virtual_memory().available, _cgroup_headroom()))


def _cgroup_headroom() -> float:
    """Bytes to the limit of this process's control group, versions 2 and 1."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = ((CGROUP / name).read_text().strip() for name in (limit, used))
            return max(int(most) - int(now), 0)
        except (OSError, ValueError):
            # No such file, or "max": no limit of this kind.
            continue
    return float("inf")
