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
from nerve_fast.blocked import entropy as blocked_entropy
from nerve_fast.blocked.entropy import entropy_of_all
from nerve_fast.clusters import Clusters, cluster_keys
from nerve_fast.config import NerveConfig
from nerve_fast.dispatch import Plan
from nerve_fast.errors import InputError
from nerve_fast.numerics import upcast
from nerve_fast.ops.checks import check_logits, check_values, check_weight_sum
from nerve_fast.shares import Share
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


def _sums_of(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@without_autocast
def head_entropy(
    q: Tensor, k: Tensor, scale: float | None, backend: str, requires_grad: bool
) -> Tensor:
    """See :func:`nerve_fast.head_entropy`."""
    check_logits(q, k, scale, _sums_of(q.dtype))
    return _module(backend, q, requires_grad).head_entropy(q, k, scale)


@without_autocast
def entropy_of_shares(q: Tensor, k: Tensor, backend: str, share: Share) -> Tensor:
    """:func:`head_entropy` of the tokens of all processes that share them, on all of these."""
    if share.alone:
        return head_entropy(q, k, None, backend, dispatch.wants_grad(q, k))
    share.agreed(lambda: check_logits(q, k, None, _sums_of(q.dtype)))
    return entropy_of_all(q, k, share)


@without_autocast
def grouped_entropy(groups: Tensor, k: Tensor, backend: str, share: Share) -> Tensor:
    """Entropies ``(groups, …, H)`` of groups of rows ``(groups, …, H, rows, D)``.

    Of shared tokens ``k`` holds those of this process, and all have the same rows.
    """
    share.agreed(lambda: check_logits(groups, k, None, _sums_of(k.dtype)))
    count, *batch = groups.shape[:-3]
    found = []
    members = groups.reshape(count, -1, *groups.shape[-3:]).unbind(1)
    for rows, keys in zip(members, k.reshape(-1, *k.shape[-3:]), strict=True):
        # Not copied: a view that has the keys again for each group.
        keys = keys.expand(count, *keys.shape)
        if share.alone:
            found.append(_module(backend, rows, False).head_entropy(rows, keys, None))
        else:
            found.append(blocked_entropy.head_entropy(rows, keys, None, share))
    return torch.stack(found, 1).unflatten(1, batch or (1,)).reshape(count, *batch, -1)


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
def local_series(
    values: Tensor,
    prior: Tensor,
    grid: tuple[int, int],
    radius: int,
    alpha: float,
    steps: int,
    backend: str,
    requires_grad: bool,
) -> Tensor:
    """:meth:`nerve_fast.LocalAffinity.power_series` of operands of one dtype."""
    module = _module(backend, values, requires_grad, radius)
    batch = torch.broadcast_shapes(values.shape[:-2], prior.shape[:-2])
    prior = prior.expand(*batch, *prior.shape[-2:])
    return module.local_series(values, grid, radius, prior, alpha, steps)


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
    share: Share | None = None,
) -> Walked:
    """See :func:`nerve_fast.ops.walk.walked`; ``share``: which rows of the grid these are."""
    share = share or Share(grid)
    wide = torch.float64 in (q.dtype, prior.dtype)

    def planned(route: str) -> Plan:
        if head_weights is None and config.sharpness > 0:
            check_logits(q, k, None, torch.float64 if wide else torch.float32)
            check_values(prior=prior)
        else:
            check_values(q=q, k=k, prior=prior, head_weights=head_weights)
        check_weight_sum(head_weights, config.rule)
        problem = dispatch.problem_of(
            (*q.shape[:-2], share.tokens, q.shape[-1]),
            prior.shape[-1],
            config,
            q.device,
            torch.float64 if wide else q.dtype,
            head_weights is not None,
            grid,
            share.processes,
            q.shape[-2],
        )
        if clusters is not None and clusters.count != config.global_keys:
            raise InputError(
                f"clusters holds {clusters.count} of them; expected config.global_keys, which is "
                f"{config.global_keys}"
            )
        if plan is None:
            return dispatch.plan_for(problem, backend, route, max_memory, requires_grad)
        if (backend, route, max_memory) != ("auto", "auto", None):
            raise InputError(
                "plan is given together with backend, route or max_memory, which it settles "
                "already; pass the plan alone, or leave it out"
            )
        dispatch.check_plan(plan, problem, requires_grad)
        return plan

    taken = share.agreed(lambda: planned(route))
    routes = set(share.each(taken.route))
    if "factorized" in routes and len(routes) > 1:
        # It exchanges other sums than the others, so all have to take it.
        if plan is not None:
            raise InputError("plan says route 'factorized' on some processes of the group only")
        taken = share.agreed(lambda: planned("factorized"))
    problem = taken.problem
    if wide:
        q, k = q.double(), k.double()
    if clusters is None and problem.clustered and config.moves(return_steps):
        head_weights, clusters = _clustered(
            taken.backend, q, k, prior, head_weights, config, problem.columns, share
        )
    # Windows that reach beyond the grid from every token would only be larger in memory.
    config = config.replace(radius=clipped_radius(config.radius, grid))
    out = dispatch.module_of(taken.backend, q.device).random_walk(
        q,
        k,
        prior,
        grid,
        config,
        head_weights,
        route=taken.route,
        stored_rows=taken.stored_rows,
        return_steps=return_steps,
        on_step=on_step,
        clusters=clusters,
        **({} if share.alone else {"share": share}),
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
    share: Share,
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
        if share.alone:
            entropy = dispatch.module_of(backend, q.device).head_entropy(q, k, None)
        else:
            entropy = entropy_of_all(q, k, share)
        head_weights = remember(reference.entropy_weights(entropy, config.sharpness), 1.0)
    return head_weights, cluster_keys(k, head_weights, count, prior, share)


def _module(backend: str, x: Tensor, requires_grad: bool, radius: int = 1):
    """The module of the backend for an operation on tensors like ``x``."""
    name = dispatch.choose(backend, x.device, x.dtype, requires_grad, radius)
    return dispatch.module_of(name, x.device)
