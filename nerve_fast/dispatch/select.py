"""The choice of a backend by name: the argument, ``use_backend``, ``NERVE_FAST_BACKEND``, auto."""

import contextlib
import contextvars
import dataclasses
import functools
import importlib
import importlib.util
import logging
import os
import threading
import weakref
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from nerve_fast.dispatch import selfcheck, tuning
from nerve_fast.errors import InputError, quoted

logger = logging.getLogger(__name__)

BACKEND_NAMES = ("auto", "reference", "blocked", "triton")
ENVIRONMENT = "NERVE_FAST_BACKEND"

KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_MODULES = {
    "reference": "nerve_fast.reference",
    "blocked": "nerve_fast.blocked",
    # Imported on first use, as Triton is available on Linux only.
    "triton": "nerve_fast.kernels.backend",
}
_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)

_active: list["_Entry"] = []
"""What :func:`use_backend` was entered with, by whichever thread."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Entry:
    """A block of :func:`use_backend`.

    Attributes:
        backend: that was chosen.
        others: the threads that were there when the block was entered, which it does not concern.
    """

    backend: str
    others: weakref.WeakSet


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within the block, operations with ``backend="auto"`` run on ``backend``.

    It holds for the thread that enters the block, and for threads that are started while it lasts
    and enter none of their own; threads that were there before keep what they had.

    Args:
        backend: ``auto``, ``reference``, ``blocked`` or ``triton``.

    Raises:
        InputError: there is no such backend.
    """
    check_name(backend)
    token = _chosen.set(backend)
    # Appending and removing are atomic.
    entry = _Entry(backend, weakref.WeakSet(threading.enumerate()))
    _active.append(entry)
    try:
        yield
    finally:
        _active.remove(entry)
        _chosen.reset(token)


def resolve(backend: str) -> str:
    """The name in force: the argument's, else the context's, else the environment's."""
    check_name(backend)
    if backend == "auto":
        backend = _chosen.get() or _last_active()
    if backend == "auto" and os.environ.get(ENVIRONMENT):
        backend = os.environ[ENVIRONMENT]
        check_name(backend, f"the environment variable {ENVIRONMENT}")
    return backend


def _last_active() -> str:
    """What was chosen last by a thread that may have started this one."""
    for entry in reversed(_active.copy()):
        if threading.current_thread() not in entry.others:
            return entry.backend
    return "auto"


def check_name(backend: str, where: str = "backend") -> None:
    """Raises :class:`InputError` unless ``backend`` is a backend's name or ``auto``."""
    if not isinstance(backend, str) or backend not in BACKEND_NAMES:
        raise InputError(
            f"{where} is {quoted(backend)}; expected one of {', '.join(BACKEND_NAMES)}"
        )


def backend_for(backend: str, first: Tensor, *others: Tensor | None, radius: int = 1) -> ModuleType:
    """The module that carries out an operation on its inputs for the argument ``backend``.

    Args:
        backend: as the caller gave it.
        first, others: inputs of the operation; the first one says where and in what it computes.
        radius: of its window, if it has one.

    Raises:
        InputError: there is no such backend for them. An explicit choice never falls back.
    """
    grad = wants_grad(first, *others)
    return module_of(choose(backend, first.device, first.dtype, grad, radius), first.device)


def choose(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    requires_grad: bool = False,
    radius: int = 1,
) -> str:
    """The name of the backend for inputs of this kind; raises as :func:`backend_for` does."""
    name = resolve(backend)
    if name != "auto":
        CAN_RUN[name](device, dtype, requires_grad, radius, raise_error=True)
        return name
    able = (n for n in candidates(device) if CAN_RUN[n](device, dtype, requires_grad, radius))
    return next(able)


def wants_grad(*inputs: Tensor | None) -> bool:
    """Whether a gradient of an operation on ``inputs`` may be asked for."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def candidates(device: torch.device) -> tuple[str, ...]:
    """The backends that ``auto`` considers, in order; on a CPU kernels are only interpreted."""
    return ("triton", "blocked", "reference") if device.type == "cuda" else ("blocked", "reference")


def module_of(name: str, device: torch.device) -> ModuleType:
    """The module of a backend that can run on ``device``."""
    if name == "triton":
        tuning.load(device)
    return importlib.import_module(_MODULES[name])


def can_run_pytorch(
    device: torch.device,
    dtype: torch.dtype,
    requires_grad: bool,
    radius: int = 1,
    raise_error: bool = False,
) -> bool:
    """The reference and the blocked backend run wherever torch does."""
    return True


def can_run_triton(
    device: torch.device,
    dtype: torch.dtype,
    requires_grad: bool,
    radius: int = 1,
    raise_error: bool = False,
) -> bool:
    """Kernels run on CUDA and ROCm GPUs, forward, in up to 32 bits."""
    reason = triton_obstacle(device, dtype, requires_grad, radius)
    if reason is None:
        return True
    reason = f"backend 'triton' {reason}; 'blocked' and 'reference' can: pass one, or 'auto'"
    if raise_error:
        raise InputError(reason)
    logger.debug(reason)
    return False


def triton_obstacle(
    device: torch.device,
    dtype: torch.dtype,
    requires_grad: bool = False,
    radius: int = 1,
    checked: bool = True,
) -> str | None:
    """Why the kernels cannot take such inputs, or ``None`` where they can.

    ``checked``: nor may they fail their check on this machine, which runs at their first use.
    """
    elsewhere = f"runs on CUDA and ROCm GPUs, not on {device.type} (TRITON_INTERPRET=1: for tests)"
    if device.type != "cuda" and not os.environ.get("TRITON_INTERPRET"):
        # Importing Triton takes a second, so it is not imported where it cannot be used.
        return elsewhere
    reason = _missing_triton()
    if reason:
        return reason
    from nerve_fast.kernels import launch

    if requires_grad:
        return "has no gradients, and an input requires one"
    if dtype not in KERNEL_DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in KERNEL_DTYPES)
        return f"takes {names}, not {str(dtype).removeprefix('torch.')}"
    if radius > launch.MAX_RADIUS:
        return f"takes a radius of at most {launch.MAX_RADIUS}, not {radius}"
    if launch.interpreted():
        if dtype == torch.bfloat16:
            return "cannot take bfloat16 in Triton's interpreter, which multiplies its bits"
        return None
    if device.type != "cuda":
        return elsewhere
    if not torch.version.hip and torch.cuda.get_device_capability(device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(device)
        return f"needs a GPU of capability 8.0 or newer, not {major}.{minor}"
    reason = launch.obstacle(device)
    return reason or (selfcheck.obstacle(device, dtype) if checked else None)


@functools.cache
def _missing_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    import triton

    major, minor = map(int, triton.__version__.split(".")[:2])
    if (major, minor) < (3, 6):
        return f"needs triton 3.6 or newer, not {triton.__version__}"
    return None


CAN_RUN = {
    "reference": can_run_pytorch,
    "blocked": can_run_pytorch,
    "triton": can_run_triton,
}
"""One check for each backend, used by automatic and by explicit choices."""
