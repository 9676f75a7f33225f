"""Which backend and which route carry out an operation, and why.

:mod:`~nerve_fast.dispatch.select` resolves names, :mod:`~nerve_fast.dispatch.machine` says what the
machine has, :mod:`~nerve_fast.dispatch.costs` what each route costs, and
:mod:`~nerve_fast.dispatch.planning` chooses.
"""

from nerve_fast.dispatch.machine import pick_device
from nerve_fast.dispatch.planning import ROUTES, Plan, plan
from nerve_fast.dispatch.select import (
    BACKEND_NAMES,
    CAN_RUN,
    backend_for,
    choose,
    resolve,
    use_backend,
    wants_grad,
    without_triton,
)

__all__ = [
    "BACKEND_NAMES",
    "CAN_RUN",
    "ROUTES",
    "Plan",
    "backend_for",
    "choose",
    "pick_device",
    "plan",
    "resolve",
    "use_backend",
    "wants_grad",
    "without_triton",
]
