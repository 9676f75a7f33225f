"""The random walk: the whole graph stage in one call."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from nerve_fast.blocked.precision import product_dtype
from nerve_fast.clusters import Clusters
from nerve_fast.config import NerveConfig
from nerve_fast.dispatch import Plan, checked_config, wants_grad
from nerve_fast.errors import InputError
from nerve_fast.ops import eager, library
from nerve_fast.ops.checks import (
    check_grid,
    check_head_weights,
    check_prior,
    check_qk,
    check_return_steps,
)
from nerve_fast.shares import Share, carries, shared
from nerve_fast.walked import Walked


def random_walk(
    q: Tensor,
    k: Tensor,
    prior: Tensor,
    grid: tuple[int, int],
    config: NerveConfig | None = None,
    *,
    head_weights: Tensor | None = None,
    backend: str = "auto",
    route: str = "auto",
    plan: Plan | None = None,
    max_memory: int | str | None = None,
    return_steps: Sequence[int] = (),
    on_step: Callable[[], None] | None = None,
    group: Any = None,
) -> Tensor | tuple[Tensor, dict[int, Tensor]]:
    r"""Spread labels over the graph of image tokens (NERVE, slides 4.1 to 4.4).

    .. math:: P_L = \frac{1 - \alpha}{1 - \alpha^{L+1}} \sum_{t=0}^{L} \alpha^t S^t G, \quad
              P_\infty = (1 - \alpha) (I - \alpha S)^{-1} G, \quad
              S = \beta S_{global} + (1 - \beta) S_{local}

    Args:
        q, k: ``(…, H, N, D)`` queries and keys of a self-attention layer, any floating dtype.
        prior: ``G``, ``(…, N, K)``: a distribution over ``K`` labels for each token.
        grid: ``(h, w)`` with ``h · w = N``; tokens are in row-major order.
        config: settings; ``None`` is ``NerveConfig()``. With ``steps=None`` the result is ``P∞``
            within ``config.tolerance``.
        head_weights: ``(…, H)``, finite, 0 or more, used as given; ``None`` takes them from the
            heads' entropies, with ``config.sharpness``. With ``shift`` they may sum to at most 1,
            beyond which some of its numerators ``1 + a`` would be negative.
        backend: ``auto``, ``reference``, ``blocked`` or ``triton``.
        route: ``auto``, ``dense``, ``streaming`` or ``factorized``; :func:`nerve_fast.plan` says
            what ``auto`` takes, and why.
        plan: executed as it is, in place of ``backend``, ``route`` and ``max_memory``.
        max_memory: bytes that may be used beyond the inputs, or text such as ``"6GB"``; ``None``
            plans with what is free.
        return_steps: numbers of steps after which the walk is wanted too, from the same walk;
            they may exceed ``config.steps``.
        on_step: called after each step; by the backend ``blocked`` for each member of a batch, by
            the others for all members at once. What it raises ends the walk.
        group: a ``torch.distributed`` process group whose processes take part in one walk: ``q``,
            ``k``, ``prior`` and the result of each are a share of it, one or more whole rows of the
            grid, in the order of their ranks. ``grid`` is that of all of them. All arguments but
            these, ``max_memory``, ``on_step`` and the share that a ``plan`` is for have to be the
            same. A walk that is shared runs on ``blocked``, and has no gradients.

    Returns:
        ``P (…, N, K)`` in the dtype of ``prior``; with ``return_steps`` the pair of it and
        ``{t: P_t}``. Where the numerators of ``config.normalization`` cannot be negative
        (``softmax``, ``relu``, ``shift``), its rows sum to what the prior's rows sum to; ``l1``
        keeps the sign of the cosines, and ``P`` can be negative.

    Raises:
        ValueError, TypeError: an argument is not as described; the message says how.
    """
    if library.compiled():
        if group is not None:
            raise InputError("group is not taken under torch.compile; call the walk outside of it")
        grid, config, return_steps = _checked(q, k, prior, grid, config, head_weights, return_steps)
        if plan is not None:
            raise InputError(
                "plan is not taken under torch.compile, where a walk is planned when it runs; pass "
                "plan.backend as backend and plan.route as route instead"
            )
        P, *others = library.random_walk(
            q, k, prior, head_weights, grid, config, backend, route, max_memory, return_steps
        )
        return (P, dict(zip(return_steps, others, strict=True))) if return_steps else P
    P, at_steps, _ = walked(
        q,
        k,
        prior,
        grid,
        config,
        head_weights=head_weights,
        backend=backend,
        route=route,
        plan=plan,
        max_memory=max_memory,
        return_steps=return_steps,
        on_step=on_step,
        group=group,
    )
    return (P, at_steps) if len(at_steps) else P


def walked(
    q: Tensor,
    k: Tensor,
    prior: Tensor,
    grid: tuple[int, int],
    config: NerveConfig | None = None,
    *,
    head_weights: Tensor | None = None,
    backend: str = "auto",
    route: str = "auto",
    plan: Plan | None = None,
    max_memory: int | str | None = None,
    return_steps: Sequence[int] = (),
    on_step: Callable[[], None] | None = None,
    clusters: Clusters | None = None,
    group: Any = None,
) -> Walked:
    """:func:`random_walk` with the number of steps that it took; not for ``torch.compile``.

    Args:
        clusters: of the keys, ``config.global_keys`` of them; ``None`` finds them where they are
            wanted.
    """
    share: Share | None = None
    if group is None:
        grid, config, return_steps = _checked(q, k, prior, grid, config, head_weights, return_steps)
    else:
        given = (q, k, prior, grid, config, head_weights, return_steps)
        share = shared(group, lambda: _described(group, *given))
        grid, config, return_steps = _checked(*given, shared=True)
    return eager.walked(
        q,
        k,
        prior,
        head_weights,
        grid,
        config,
        backend,
        route,
        plan,
        max_memory,
        return_steps,
        on_step,
        wants_grad(q, k, prior, head_weights),
        clusters,
        share,
    )


def _described(group, q, k, prior, grid, config, head_weights, return_steps) -> dict:
    """What all processes of a group have to have alike, and the tokens of this one; checked."""
    given = (q, k, prior, grid, config, head_weights, return_steps)
    grid, config, return_steps = _checked(*given, shared=True)
    if wants_grad(q, k, prior, head_weights):
        raise InputError(
            "group is given, and an input requires a gradient; a shared walk has none: detach it"
        )
    if not carries(group, q.device):
        raise InputError(
            f"q is on {q.device}, where group exchanges nothing; pass tensors on a device of the "
            "group's backend, or make a group for theirs"
        )
    weights = None if head_weights is None else head_weights.tolist()
    return {
        "grid": list(grid),
        "tokens": q.shape[-2],
        "the batch of q": list(q.shape[:-3]),
        "the number of heads": q.shape[-3],
        "the dimension of heads": q.shape[-1],
        "the number of labels": prior.shape[-1],
        "the dtype of q": str(q.dtype),
        "the dtype of prior": str(prior.dtype),
        "the kind of device": q.device.type,
        "the dtype of products": str(product_dtype(q.dtype, q.device)),
        "head_weights": weights,
        "config": str(config),
        "return_steps": list(return_steps),
    }


def _checked(
    q, k, prior, grid, config, head_weights, return_steps, *, shared: bool = False
) -> tuple[tuple[int, int], NerveConfig, tuple[int, ...]]:
    """The grid, the settings and the numbers of steps, after checks of everything but values.

    ``shared``: the grid is larger than what is here of it.
    """
    check_qk(q, k)
    check_prior(prior, q)
    grid = check_grid(grid, None if shared else q.shape[-2])
    config = checked_config(config)
    if head_weights is not None:
        check_head_weights(head_weights, q)
    return grid, config, check_return_steps(return_steps)
