"""The choice of a backend by name: the argument, ``use_backend``, ``NERVE_FAST_BACKEND``, auto."""

import contextlib
import contextvars
import logging
import os
from collections.abc import Iterator
from types import ModuleType

from nerve_fast import blocked, reference
from nerve_fast.errors import InputError

logger = logging.getLogger(__name__)

BACKEND_NAMES = ("auto", "reference", "blocked", "triton")
ENVIRONMENT = "NERVE_FAST_BACKEND"

_MODULES = {"reference": reference, "blocked": blocked}
_PREFERENCE = ("triton", "blocked", "reference")
_chosen: contextvars.ContextVar[str] = contextvars.ContextVar("backend", default="auto")


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within the block, operations that are not told otherwise run on ``backend``.

    Args:
        backend: ``auto``, ``reference``, ``blocked`` or ``triton``.

    Raises:
        InputError: there is no such backend.
    """
    check_name(backend)
    token = _chosen.set(backend)
    try:
        yield
    finally:
        _chosen.reset(token)


def resolve(backend: str) -> str:
    """The name that counts: the argument's, else the context's, else the environment's."""
    check_name(backend)
    if backend == "auto":
        backend = _chosen.get()
    if backend == "auto" and os.environ.get(ENVIRONMENT):
        backend = os.environ[ENVIRONMENT]
        check_name(backend, f"the environment variable {ENVIRONMENT}")
    return backend


def check_name(backend: str, where: str = "backend") -> None:
    """Raises :class:`InputError` unless ``backend`` is a backend's name or ``auto``."""
    if backend not in BACKEND_NAMES:
        raise InputError(f"{where} is {backend!r}; expected one of {', '.join(BACKEND_NAMES)}")


def backend_for(backend: str) -> ModuleType:
    """The module that carries out operations for the argument ``backend``.

    Raises:
        InputError: there is no such backend here. An explicit choice never falls back.
    """
    name = resolve(backend)
    if name != "auto":
        CAN_RUN[name](raise_error=True)
        return _MODULES[name]
    return _MODULES[next(name for name in _PREFERENCE if CAN_RUN[name]())]


def can_run_reference(raise_error: bool = False) -> bool:
    """Plain PyTorch runs wherever torch does."""
    return True


def can_run_blocked(raise_error: bool = False) -> bool:
    """Plain PyTorch runs wherever torch does."""
    return True


def can_run_triton(raise_error: bool = False) -> bool:
    """The kernels are not there yet."""
    return _refuse(
        "backend 'triton' is not part of this version of nerve-fast; 'blocked' and 'reference' "
        "are: pass one of them, or 'auto'",
        raise_error,
    )


CAN_RUN = {
    "reference": can_run_reference,
    "blocked": can_run_blocked,
    "triton": can_run_triton,
}
"""One check a backend, for automatic and for explicit choice alike."""


def _refuse(reason: str, raise_error: bool) -> bool:
    if raise_error:
        raise InputError(reason)
    logger.debug(reason)
    return False
