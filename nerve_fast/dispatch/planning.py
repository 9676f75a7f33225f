"""The choice of a route: the one that is expected to be fastest and fits the memory."""

import dataclasses
import functools
import logging
import math
import sys
from collections.abc import Sequence

import torch

from nerve_fast.blocked.tiles import tile_rows
from nerve_fast.config import NerveConfig
from nerve_fast.dispatch.costs import peak_memory, rates_for, row_memory, work
from nerve_fast.dispatch.machine import free_memory
from nerve_fast.dispatch.plans import Option, Plan, Way
from nerve_fast.dispatch.problem import Problem, problem_of
from nerve_fast.dispatch.select import CAN_RUN, candidates, resolve, triton_obstacle
from nerve_fast.errors import InputError, quoted
from nerve_fast.normalization import NORMALIZATIONS
from nerve_fast.utils.units import format_bytes, parse_bytes

logger = logging.getLogger(__name__)

ROUTES = ("auto", "dense", "streaming", "factorized")
WAYS = (
    ("triton", "factorized"),
    ("triton", "dense"),
    ("triton", "streaming"),
    ("blocked", "factorized"),
    ("blocked", "dense"),
    ("blocked", "streaming"),
    ("reference", "dense"),
)
"""Backends and their routes."""

FREE_SHARE = 0.8
"""The share of the free memory that is planned with where no budget is given."""


SMALL_WALK = 128 << 20
"""Walks up to this many bytes are planned without asking how many are free."""


def plan(
    shape: Sequence[int],
    num_labels: int,
    *,
    config: NerveConfig | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    route: str = "auto",
    max_memory: int | str | None = None,
    weights_given: bool = False,
    requires_grad: bool = False,
    grid: tuple[int, int] | None = None,
    processes: int = 1,
) -> Plan:
    """How :func:`nerve_fast.random_walk` would carry out a walk, without running it.

    Args:
        shape: of ``q``: ``(…, H, N, D)``.
        num_labels: ``K``, at least 1.
        config: settings; ``None`` is ``NerveConfig()``. With ``steps=None`` the cost is that of
            the most steps that the tolerance can take.
        device, dtype: of ``q``.
        backend, route: as for the walk.
        max_memory: bytes that the walk may take beyond its inputs, or text such as ``"6GB"``;
            ``None`` is four fifths of what is free.
        weights_given: whether the caller gives the head weights, so that no entropy is computed.
        requires_grad: whether an input requires a gradient.
        grid: ``(h, w)``; without it the memory is that of the grid whose windows take the most.
        processes: of a group that share the walk: cost and memory are those of the largest share.

    Returns:
        The plan, which ``random_walk(plan=…)`` executes.

    Raises:
        InputError: a value is out of range, the budget is too small, the route is not exact, or
            the backend is not available; the message says what is.
        TypeError: an argument is of the wrong type.
    """
    problem = problem_of(shape, num_labels, config, device, dtype, weights_given, grid, processes)
    if not isinstance(requires_grad, bool):
        raise TypeError(f"requires_grad is {quoted(requires_grad)}; expected True or False")
    return plan_for(problem, backend, route, max_memory, requires_grad)


def plan_for(
    problem: Problem,
    backend: str,
    route: str,
    max_memory: int | str | None,
    requires_grad: bool,
) -> Plan:
    """:func:`plan` for a problem that has been checked."""
    if not isinstance(route, str) or route not in ROUTES:
        # Before plans are looked up, which takes a hash.
        raise InputError(f"route is {quoted(route)}; expected one of {', '.join(ROUTES)}")
    request = (problem, resolve(backend), route, requires_grad)
    if max_memory is not None:
        return _planned(*request, parse_bytes(max_memory), named=True)
    at_best = _planned(*request, sys.maxsize)
    if at_best.peak_memory <= SMALL_WALK:
        # Asking a GPU for its free memory takes as long as such a walk.
        return at_best
    return _planned(*request, _coarse(int(FREE_SHARE * free_memory(problem.device))))


def check_plan(plan: Plan, problem: Problem, requires_grad: bool) -> None:
    """Raises :class:`InputError` unless ``plan`` can carry out ``problem``."""
    if not isinstance(plan, Plan):
        raise TypeError(f"plan is a {type(plan).__name__}; expected what nerve_fast.plan returns")
    misfit = plan.problem.misfit(problem)
    if misfit is not None:
        raise InputError(
            f"plan does not fit this walk: {misfit}; make one with nerve_fast.plan for these inputs"
        )
    kind = (problem.device, problem.dtype, requires_grad, problem.radius)
    CAN_RUN[plan.backend](*kind, raise_error=True)


def _coarse(size: int) -> int:
    """``size`` down to four binary digits, so that plans can be remembered."""
    return size >> (shift := max(size.bit_length() - 4, 0)) << shift


@functools.lru_cache(maxsize=256)
def _planned(
    problem: Problem,
    backend: str,
    route: str,
    requires_grad: bool,
    budget: int,
    named: bool = False,
) -> Plan:
    """The plan within ``budget`` bytes; ``named``: the caller has set it."""
    _check_request(problem, backend, route, requires_grad)
    options = [_option(problem, budget, backend, route, requires_grad, *way) for way in WAYS]
    possible = [option for option in options if option.refused is None]
    if not possible:
        # Only memory is left as a reason: the request itself has been checked.
        best = min(
            (option for option in options if option.exceeds_memory),
            key=lambda option: option.peak_memory,
        )
        if named:
            raise InputError(
                f"max_memory is {format_bytes(budget)}; this walk needs at least "
                f"{format_bytes(best.peak_memory)} ({best.backend}, {best.route})"
            )
        reason = f"it needs the least memory, though more than the {format_bytes(budget)} free"
    else:
        best = min(possible, key=lambda option: option.seconds)
        reason = _reason(best, possible, problem)
    chosen = Plan(
        **{field.name: getattr(best, field.name) for field in dataclasses.fields(Way)},
        problem=problem,
        reason=reason,
        rates=rates_for(best.backend, problem.device)["source"],
        options=tuple(options),
    )
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s\n%s", chosen, chosen.table())
    return chosen


def _check_request(problem: Problem, backend: str, route: str, requires_grad: bool) -> None:
    """Refuse what no amount of memory would make possible."""
    if problem.processes > 1 and backend not in ("auto", "blocked"):
        raise InputError(
            f"backend is {backend!r}, and {problem.processes} processes share the walk, which "
            "'blocked' alone does; pass that, or 'auto'"
        )
    if backend != "auto":
        kind = (problem.device, problem.dtype, requires_grad, problem.radius)
        CAN_RUN[backend](*kind, raise_error=True)
    if route == "factorized" and not problem.rule.linear:
        linear = [repr(rule.name) for rule in NORMALIZATIONS.values() if rule.linear]
        raise InputError(
            f"route 'factorized' is not exact with normalization {problem.rule.name!r}; "
            f"it is with {' and '.join(linear)}: change the normalization, or "
            "take 'auto', 'dense' or 'streaming'"
        )
    if backend == "reference" and route not in ("auto", "dense"):
        raise InputError(
            f"backend 'reference' has no route {route!r}, it is dense; backend 'blocked' has it: "
            "pass that, or 'auto'"
        )


def _option(
    problem: Problem,
    budget: int,
    wanted_backend: str,
    wanted_route: str,
    requires_grad: bool,
    backend: str,
    route: str,
) -> Option:
    stored = 0
    if route == "dense" and backend != "reference":
        stored = _stored_rows(problem, budget, backend)
    amount = work(problem, backend, route, stored)
    memory = peak_memory(problem, backend, route, stored)
    cannot, exceeds_memory = None, False
    if backend == "triton":
        kind = (problem.device, problem.dtype, requires_grad, problem.radius)
        cannot = triton_obstacle(*kind)
        if cannot is None and backend not in (wanted_backend, *candidates(problem.device)):
            cannot = "interpreted here, not for speed"
    if problem.processes > 1 and backend != "blocked":
        refused = "takes no share of a walk"
    elif wanted_backend not in ("auto", backend):
        refused = f"backend {wanted_backend!r} was asked for"
    elif cannot:
        refused = cannot
    elif wanted_route not in ("auto", route):
        refused = f"route {wanted_route!r} was asked for"
    elif route == "factorized" and not problem.rule.linear:
        refused = f"not exact with {problem.rule.name!r}"
    elif memory > budget:
        exceeds_memory = True
        refused = f"needs more than the {format_bytes(budget)} there are"
    else:
        refused = None
    return Option(
        backend=backend,
        route=route,
        stored_rows=stored,
        flops=amount.flops,
        bytes=round(amount.narrow_bytes),
        peak_memory=memory,
        # The rates of a GPU say nothing about a machine without one.
        seconds=math.inf if cannot else amount.seconds(backend, problem.device),
        refused=refused,
        exceeds_memory=exceeds_memory,
    )


def _stored_rows(problem: Problem, budget: int, backend: str) -> int:
    """Rows of ``S`` in whole blocks: at least one, as many as the budget holds."""
    room = budget - peak_memory(problem, backend, "dense")
    if backend == "triton":
        # All members of a batch are walked at once.
        size, row = 128, problem.batch * row_memory(problem, backend)
    else:
        row, itemsize = row_memory(problem, backend), problem.stored_itemsize(backend)
        size = tile_rows(problem.columns, problem.device, itemsize)
    return min(max(room // row // size * size, size), problem.own)


def _reason(best: Option, possible: list[Option], problem: Problem) -> str:
    others = [option for option in possible if option is not best]
    if not others:
        return "it is the only way within what was asked for"
    second = min(option.seconds for option in others)
    if best.seconds == 0:
        return "there is nothing to compute"
    reason = f"the fastest of {len(possible)} that fit, {second / best.seconds:.1f} times the next"
    if best.route == "dense" and best.backend != "reference" and best.stored_rows < problem.own:
        reason += f", keeping {best.stored_rows / problem.own:.0%} of S"
    return reason
