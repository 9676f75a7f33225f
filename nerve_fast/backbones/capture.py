"""Outputs of submodules of a forward pass, taken by hooks that are safe under threads.

A hook sees the calls of every thread that uses the module. So hooks are registered once and stay,
and each pass has a place of its own for what it captures, which only its own context sees.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

_outputs: ContextVar[dict[nn.Module, Tensor | None] | None] = ContextVar("outputs", default=None)


class _AllCapturedError(Exception):
    """Raised out of the last hook: what follows in the network is not needed."""


def watch(modules: Sequence[nn.Module]) -> None:
    """Register the hook on each module that does not have it yet."""
    for module in modules:
        if _keep not in module._forward_hooks.values():
            module.register_forward_hook(_keep)


def captured(modules: Sequence[nn.Module], forward: Callable[[], object]) -> list[Tensor]:
    """The outputs of watched modules in one pass, which ends where the last of them has run.

    Args:
        modules: all of them given to :func:`watch` before, none of them twice.
        forward: runs the network in the calling thread.

    Returns:
        One tensor for each module, in their order.
    """
    outputs: dict[nn.Module, Any] = dict.fromkeys(modules)
    token = _outputs.set(outputs)
    try:
        with contextlib.suppress(_AllCapturedError):
            forward()
    finally:
        _outputs.reset(token)
    return [outputs[module] for module in modules]


def _keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
    outputs = _outputs.get()
    if outputs is None or module not in outputs:
        return
    outputs[module] = output
    if all(kept is not None for kept in outputs.values()):
        raise _AllCapturedError
