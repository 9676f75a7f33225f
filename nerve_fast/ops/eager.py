"""The operations carried out here and now, for arguments whose shapes have been checked.

What depends on values or on the machine happens here: the choice of a backend, of a route, and the
call. The public functions call these directly; under ``torch.compile`` the operators of
:mod:`nerve_fast.ops.library` call them when the compiled program runs.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from nerve_fast import dispatch, reference
from nerve_fast.clusters import Clusters, cluster_keys
from nerve_fast.config import NerveConfig
from nerve_fast.dispatch import Plan
from nerve_fast.errors import InputError
from nerve_fast.numerics import upcast
from nerve_fast.ops.checks import check_logits, check_values, check_weight_sum
from nerve_fast.utils.windows import clipped_radius
from nerve_fast.walked import Walked
from nerve_fast.weights import is_capturing, remember


def without_autocast(operation: Callable) -> Callable:
    """``operation`` in the precision of its inputs, whatever autocast is set to around it."""

    @functools.wraps(operation)
    def wrapped(first: Tensor, *arguments):
        with torch.autocast(first.device.type, enabled=False):
            return operation(first, *arguments)

    return wrapped


@without_autocast
def head_entropy(
    q: Tensor, k: Tensor, scale: float | None, backend: str, requires_grad: bool
) -> Tensor:
    """See :func:`nerve_fast.head_entropy`."""
    check_logits(check_values(q=q, k=k), q, scale)
    return _module(backend, q, requires_grad).head_entropy(q, k, scale)


@without_autocast
def cosine_affinity(
    q: Tensor, k: Tensor, head_weights: Tensor | None, backend: str, requires_grad: bool
) -> Tensor:
    """See :func:`nerve_fast.cosine_affinity`."""
    check_values(q=q, k=k, head_weights=head_weights)
    return _module(backend, q, requires_grad).cosine_affinity(q, k, head_weights).to(q.dtype)


@without_autocast
def local_affinity(
    q: Tensor,
    k: Tensor,
    head_weights: Tensor | None,
    grid: tuple[int, int],
    radius: int,
    self_affinity: float,
    backend: str,
    requires_grad: bool,
) -> Tensor:
    """The values of :func:`nerve_fast.local_affinity`."""
    check_values(q=q, k=k, head_weights=head_weights)
    return _module(backend, q, requires_grad, radius).local_affinity(
        q, k, grid, head_weights, radius, self_affinity
    )


@without_autocast
def local_transition(
    values: Tensor,
    grid: tuple[int, int],
    radius: int,
    config: NerveConfig,
    backend: str,
    requires_grad: bool,
) -> Tensor:
    """The values of :meth:`nerve_fast.LocalAffinity.normalized`, in float32 or better."""
    return _module(backend, values, requires_grad, radius).local_transition(
        values, grid, radius, config.rule, config.temperature
    )


@without_autocast
def local_matmul(
    values: Tensor,
    x: Tensor,
    grid: tuple[int, int],
    radius: int,
    backend: str,
    requires_grad: bool,
) -> Tensor:
    """:meth:`nerve_fast.LocalAffinity.matmul` for float32 or float64 operands of one dtype."""
    module = _module(backend, values, requires_grad, radius)
    return module.local_matmul(values, grid, radius, x)


@without_autocast
def walked(
    q: Tensor,
    k: Tensor,
    prior: Tensor,
    head_weights: Tensor | None,
    grid: tuple[int, int],
    config: NerveConfig,
    backend: str,
    route: str,
    plan: Plan | None,
    max_memory: int | str | None,
    return_steps: tuple[int, ...],
    on_step: Callable[[], None] | None,
    requires_grad: bool,
    clusters: Clusters | None = None,
) -> Walked:
    """See :func:`nerve_fast.ops.walk.walked`."""
    magnitudes = check_values(q=q, k=k, prior=prior, head_weights=head_weights)
    check_weight_sum(head_weights, config.rule)
    if torch.float64 in (q.dtype, prior.dtype):
        q, k = q.double(), k.double()
    if head_weights is None and config.sharpness > 0:
        check_logits(magnitudes, q, None)
    problem = dispatch.problem_of(
        q.shape, prior.shape[-1], config, q.device, q.dtype, head_weights is not None, grid
    )
    if plan is None:
        plan = dispatch.plan_for(problem, backend, route, max_memory, requires_grad)
    elif (backend, route, max_memory) != ("auto", "auto", None):
        raise InputError(
            "plan is given together with backend, route or max_memory, which it settles already; "
            "pass the plan alone, or leave it out"
        )
    else:
        dispatch.check_plan(plan, problem, requires_grad)
    if clusters is not None and clusters.count != config.global_keys:
        raise InputError(
            f"clusters holds {clusters.count} of them; expected config.global_keys, which is "
            f"{config.global_keys}"
        )
    if clusters is None and problem.clustered and config.moves(return_steps):
        head_weights, clusters = _clustered(
            plan.backend, q, k, prior, head_weights, config, problem.columns
        )
    # Windows that reach beyond the grid from every token would only be larger in memory.
    config = config.replace(radius=clipped_radius(config.radius, grid))
    out = dispatch.module_of(plan.backend, q.device).random_walk(
        q,
        k,
        prior,
        grid,
        config,
        head_weights,
        route=plan.route,
        stored_rows=plan.stored_rows,
        return_steps=return_steps,
        on_step=on_step,
        clusters=clusters,
    )
    return Walked(
        out.probabilities.to(prior.dtype),
        {t: P.to(prior.dtype) for t, P in out.at_steps.items()},
        out.steps_taken,
    )


def _clustered(
    backend: str,
    q: Tensor,
    k: Tensor,
    prior: Tensor,
    head_weights: Tensor | None,
    config: NerveConfig,
    count: int,
) -> tuple[Tensor, Clusters]:
    """The head weights, and ``count`` clusters of the keys that they weight."""
    if is_capturing(q.device):
        raise InputError(
            "global_keys is set while a CUDA graph is recorded, where keys cannot be clustered; "
            "leave it None there"
        )
    if head_weights is None and config.sharpness == 0:
        head_weights = upcast(q).new_full(q.shape[:-2], 1 / q.shape[-3])
    elif head_weights is None:
        entropy = dispatch.module_of(backend, q.device).head_entropy(q, k, None)
        head_weights = remember(reference.entropy_weights(entropy, config.sharpness), 1.0)
    return head_weights, cluster_keys(k, head_weights, count, prior)


def _module(backend: str, x: Tensor, requires_grad: bool, radius: int = 1):
    """The module of the backend for an operation on tensors like ``x``."""
    name = dispatch.choose(backend, x.device, x.dtype, requires_grad, radius)
    return dispatch.module_of(name, x.device)
