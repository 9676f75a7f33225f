"""The choice of a route: the fastest expected that fits the memory there is."""

import dataclasses
import functools
import logging
import math
import sys
from collections.abc import Sequence

import torch

from nerve_fast.blocked.tiles import tile_rows
from nerve_fast.config import NerveConfig
from nerve_fast.dispatch.costs import Problem, peak_memory, rates_for, row_memory, work
from nerve_fast.dispatch.machine import free_memory
from nerve_fast.dispatch.select import CAN_RUN, candidates, resolve, without_triton
from nerve_fast.errors import InputError
from nerve_fast.utils.units import format_bytes, format_seconds, parse_bytes

logger = logging.getLogger(__name__)

ROUTES = ("auto", "dense", "streaming", "factorized")
FACTORIZABLE = ("shift", "l1")
"""Normalizations whose row is linear in the affinity, so that ``Q̃ (K̃ᵀ Y)`` is exact."""

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
"""The part of the free memory that is planned with where no budget is named."""


SMALL_WALK = 128 << 20
"""Bytes that are taken without asking how many are free."""


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to carry out a walk, and what it costs.

    Attributes:
        backend, route: its names.
        stored_rows: rows of ``S_global`` that the blocked dense route keeps.
        flops: operations of products and stencil.
        bytes: of ``S`` read.
        peak_memory: bytes beyond the inputs.
        seconds: expected time; :attr:`Plan.rates` says on which machine.
    """

    backend: str
    route: str
    stored_rows: int
    flops: int
    bytes: int
    peak_memory: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Option(Way):
    """A way that might be taken.

    Attributes:
        refused: why it cannot be, or ``None`` where it can.
    """

    refused: str | None


@dataclasses.dataclass(frozen=True)
class Plan(Way):
    """The way a walk will take, and why. ``str(plan)`` is a sentence, :meth:`table` the rest.

    Attributes:
        reason: why it is taken.
        rates: where the expected times come from.
        options: all there are, the one taken among them.
    """

    reason: str
    rates: str
    options: tuple[Option, ...]

    def __str__(self) -> str:
        return (
            f"{self.backend} / {self.route}: {self.reason}; about {format_seconds(self.seconds)} "
            f"and {format_bytes(self.peak_memory)} beyond the inputs."
        )

    def table(self) -> str:
        """All routes, a line each, with the reason each was not taken."""
        rows = [("backend", "route", "operations", "memory", "time", "")]
        for option in self.options:
            taken = (option.backend, option.route) == (self.backend, self.route)
            note = "taken" if taken else option.refused or "slower"
            rows.append(
                (
                    option.backend,
                    option.route,
                    f"{option.flops:.2g}",
                    format_bytes(option.peak_memory),
                    format_seconds(option.seconds),
                    note,
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            + ("  " + row[5] if row[5] else "")
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)


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
) -> Plan:
    """How :func:`nerve_fast.random_walk` would carry out a walk, without running it.

    Args:
        shape: of ``q``: ``(…, H, N, D)``.
        num_labels: ``K``.
        config: settings; ``None`` is ``NerveConfig()``.
        device, dtype: of ``q``.
        backend, route: as for the walk.
        max_memory: bytes that the walk may take beyond its inputs, or text such as ``"6GB"``;
            ``None`` is four fifths of what is free.
        weights_given: the head weights come from the caller, and no entropy is computed.
        requires_grad: an input requires a gradient.
        grid: ``(h, w)``, which tells how many cells ``global_stride`` leaves; without it they are
            counted as on a grid that it divides.

    Returns:
        The plan.

    Raises:
        InputError: the budget is too small, the route cannot be exact, or the backend is not there;
            the message says what can be had.
    """
    if len(shape) < 3 or min(shape) < 1:
        raise InputError(f"shape is {tuple(shape)}; expected (…, H, N, D), none of them 0")
    if num_labels < 1:
        raise InputError(f"num_labels is {num_labels}; expected 1 or more")
    *batch, heads, tokens, head_dim = shape
    if grid is not None and math.prod(grid) != tokens:
        raise InputError(f"grid is {tuple(grid)}; expected h · w = {tokens}, the tokens of shape")
    problem = Problem(
        batch=math.prod(batch),
        heads=heads,
        tokens=tokens,
        head_dim=head_dim,
        labels=num_labels,
        config=config or NerveConfig(),
        device=torch.device(device),
        dtype=dtype,
        weights_given=weights_given,
        grid=None if grid is None else tuple(grid),
    )
    request = (problem, resolve(backend), route, requires_grad)
    if max_memory is not None:
        return _planned(*request, parse_bytes(max_memory), named=True)
    at_best = _planned(*request, sys.maxsize)
    if at_best.peak_memory <= SMALL_WALK:
        # Asking a GPU takes as long as such a walk.
        return at_best
    return _planned(*request, _coarse(int(FREE_SHARE * free_memory(problem.device))))


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
            (option for option in options if option.refused.startswith("needs more")),
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
        reason=reason,
        rates=rates_for(best.backend, problem.device)["source"],
        options=tuple(options),
    )
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s\n%s", chosen, chosen.table())
    return chosen


def _check_request(problem: Problem, backend: str, route: str, requires_grad: bool) -> None:
    """Refuse what no amount of memory would make possible."""
    if route not in ROUTES:
        raise InputError(f"route is {route!r}; expected one of {', '.join(ROUTES)}")
    if backend != "auto":
        kind = (problem.device, problem.dtype, requires_grad, problem.config.radius)
        CAN_RUN[backend](*kind, raise_error=True)
    if route == "factorized" and problem.config.normalization not in FACTORIZABLE:
        raise InputError(
            f"route 'factorized' is not exact with normalization {problem.config.normalization!r}; "
            f"it is with {' and '.join(map(repr, FACTORIZABLE))}: change the normalization, or "
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
    cannot = None
    if backend == "triton":
        kind = (problem.device, problem.dtype, requires_grad, problem.config.radius)
        cannot = without_triton(*kind)
        if cannot is None and backend not in (wanted_backend, *candidates(problem.device)):
            cannot = "interpreted here, not for speed"
    if wanted_backend not in ("auto", backend):
        refused = f"backend {wanted_backend!r} was asked for"
    elif cannot:
        refused = cannot
    elif wanted_route not in ("auto", route):
        refused = f"route {wanted_route!r} was asked for"
    elif route == "factorized" and problem.config.normalization not in FACTORIZABLE:
        refused = f"not exact with {problem.config.normalization!r}"
    elif memory > budget:
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
        # The rates of a GPU say nothing about a machine without.
        seconds=math.inf if cannot else amount.seconds(backend, problem.device),
        refused=refused,
    )


def _stored_rows(problem: Problem, budget: int, backend: str) -> int:
    """Rows of ``S`` in whole blocks: at least one, as many as the budget holds."""
    room = budget - peak_memory(problem, backend, "dense")
    if backend == "triton":
        # All members of a batch at once.
        size, row = 128, problem.batch * row_memory(problem, backend)
    else:
        row, itemsize = row_memory(problem, backend), problem.stored_itemsize(backend)
        size = tile_rows(problem.columns, problem.device, itemsize)
    return min(max(room // row // size * size, size), problem.tokens)


def _reason(best: Option, possible: list[Option], problem: Problem) -> str:
    others = [option for option in possible if option is not best]
    if not others:
        return "it is the only way within what was asked for"
    second = min(option.seconds for option in others)
    reason = f"the fastest of {len(possible)} that fit, {second / best.seconds:.1f} times the next"
    if best.route == "dense" and best.backend != "reference" and best.stored_rows < problem.tokens:
        reason += f", keeping {best.stored_rows / problem.tokens:.0%} of S"
    return reason
