"""Which backend and which route carry out an operation, and why.

:mod:`~nerve_fast.dispatch.select` resolves names, :mod:`~nerve_fast.dispatch.machine` says what the
machine has, :mod:`~nerve_fast.dispatch.problem` what a walk is as far as its cost goes,
:mod:`~nerve_fast.dispatch.costs` what each route costs, :mod:`~nerve_fast.dispatch.planning`
chooses, and :mod:`~nerve_fast.dispatch.plans` is what it returns.
"""

from nerve_fast.dispatch.machine import pick_device
from nerve_fast.dispatch.planning import ROUTES, check_plan, plan, plan_for
from nerve_fast.dispatch.plans import Plan
from nerve_fast.dispatch.problem import checked_config, problem_of
from nerve_fast.dispatch.select import (
    BACKEND_NAMES,
    CAN_RUN,
    backend_for,
    check_name,
    choose,
    module_of,
    resolve,
    triton_obstacle,
    use_backend,
    wants_grad,
)

__all__ = [
    "BACKEND_NAMES",
    "CAN_RUN",
    "ROUTES",
    "Plan",
    "backend_for",
    "check_name",
    "check_plan",
    "checked_config",
    "choose",
    "module_of",
    "pick_device",
    "plan",
    "plan_for",
    "problem_of",
    "resolve",
    "triton_obstacle",
    "use_backend",
    "wants_grad",
]
