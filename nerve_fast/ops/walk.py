"""The random walk: the whole graph stage in one call."""

from collections.abc import Callable

import torch
from torch import Tensor

from nerve_fast.config import NerveConfig
from nerve_fast.dispatch import plan, wants_grad
from nerve_fast.dispatch.select import module_of
from nerve_fast.ops import library
from nerve_fast.ops.checks import check_grid, check_head_weights, check_prior, check_qk


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
    max_memory: int | str | None = None,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    r"""Spread labels over the graph of image tokens (NERVE, slides 4.1 to 4.4).

    .. math:: P_L = \frac{1 - \alpha}{1 - \alpha^{L+1}} \sum_{t=0}^{L} \alpha^t S^t G, \quad
              S = \beta S_{global} + (1 - \beta) S_{local}

    Args:
        q, k: ``(…, H, N, D)`` queries and keys of a self-attention layer, any floating dtype.
        prior: ``G``, ``(…, N, K)``: a distribution over ``K`` labels for each token.
        grid: ``(h, w)`` with ``h · w = N``; tokens are in row-major order.
        config: settings; ``None`` is ``NerveConfig()``.
        head_weights: ``(…, H)``, finite, 0 or more, used as given; ``None`` takes them from the
            heads' entropies, with ``config.sharpness``.
        backend: ``auto``, ``reference``, ``blocked`` or ``triton``.
        route: ``auto``, ``dense``, ``streaming`` or ``factorized``; :func:`nerve_fast.plan` says
            what ``auto`` takes, and why.
        max_memory: bytes that may be used beyond the inputs, or text such as ``"6GB"``; ``None``
            plans with what is free.
        on_step: called after each step of each member of a batch, by the backend ``blocked``; the
            steps of the others are too short to watch.

    Returns:
        ``P_L (…, N, K)`` in the dtype of ``prior``. For ``softmax``, ``relu`` and ``shift`` its
        rows sum to what the prior's rows sum to; ``l1`` keeps the sign of the cosines, and ``P_L``
        can be negative.

    Raises:
        ValueError, TypeError: an argument is not as described; the message says how.
    """
    check_qk(q, k)
    check_prior(prior, q)
    grid = check_grid(grid, q.shape[-2])
    if config is None:
        config = NerveConfig()
    if not isinstance(config, NerveConfig):
        raise TypeError(f"config is a {type(config).__name__}; expected a nerve_fast.NerveConfig")
    if head_weights is not None:
        check_head_weights(head_weights, q)
    if library.compiled(q, k, prior, head_weights):
        return library.random_walk(
            q,
            k,
            prior,
            *grid,
            head_weights,
            config.alpha,
            config.beta,
            config.steps,
            config.radius,
            config.self_affinity,
            config.sharpness,
            config.normalization,
            config.temperature,
            config.global_stride,
            backend,
            route,
            None if max_memory is None else str(max_memory),
        )
    if torch.float64 in (q.dtype, prior.dtype):
        q, k = q.double(), k.double()
    chosen = plan(
        q.shape,
        prior.shape[-1],
        config=config,
        device=q.device,
        dtype=q.dtype,
        backend=backend,
        route=route,
        max_memory=max_memory,
        weights_given=head_weights is not None,
        requires_grad=wants_grad(q, k, prior, head_weights),
        grid=grid,
    )
    way = {"route": chosen.route, "stored_rows": chosen.stored_rows}
    if chosen.backend == "reference":
        way = {}
    if chosen.backend == "blocked" and on_step is not None:
        way["on_step"] = on_step
    walked = module_of(chosen.backend, q.device).random_walk(
        q, k, prior, grid, config, head_weights, **way
    )
    probabilities = walked if isinstance(walked, Tensor) else walked.probabilities
    return probabilities.to(prior.dtype)
