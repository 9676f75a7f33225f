"""Transition probabilities and the random walk they drive (slides 4.1 and 4.4)."""

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from nerve_fast.clusters import Clusters
from nerve_fast.normalization import Normalization
from nerve_fast.numerics import EMPTY_ROW, empty_row_floor, steps_to_limit, upcast
from nerve_fast.reference.affinity import cosine_affinity, neighbours
from nerve_fast.reference.entropy import entropy_weights, head_entropy
from nerve_fast.walked import Walked

Advance = Callable[[Tensor, Tensor], Tensor]
"""``Y (…, N, K)`` and ``B (…, N, K)`` in, ``B + α S Y`` out: one step of a walk."""


def numerator(A: Tensor, rule: Normalization) -> Tensor:
    """The numerators of a rule that is not exponential; element by element, any shape."""
    affine = rule.scale * A + rule.offset
    return affine.clamp(min=0) if rule.clamped else affine


def over_row_sum(A: Tensor, identity: Tensor, floor: float | Tensor) -> Tensor:
    """Rows of ``A`` over their absolute sums; up to ``floor`` a row becomes ``identity``'s."""
    total = A.abs().sum(-1, keepdim=True)
    empty = total <= floor
    return torch.where(empty, identity, A / total.masked_fill(empty, 1))


def softmax_rows(logits: Tensor, identity: Tensor) -> Tensor:
    """The same for rows of ``exp(logits)``, which are never formed: they might overflow."""
    total = logits.logsumexp(-1, keepdim=True)
    empty = total <= math.log(EMPTY_ROW)
    return torch.where(empty, identity, logits.masked_fill(empty, 0).softmax(-1))


def merged(A: Tensor, assignment: Tensor) -> Tensor:
    """Every column of ``A`` becomes the mean of the columns of its cluster.

    This is what clustered keys do to the walk, written for all tokens: as ``A`` is linear in the
    keys, ``A'_ic`` is that of the cluster's mean, and the walk takes
    ``Σ_j f(A'_ij) Y_j = Σ_c f(A'_ic) Σ_{j∈c} Y_j``.

    Args:
        A: ``(…, N, N)``.
        assignment: the cluster of each token, ``(…, N)``.
    """
    together = (assignment[..., :, None] == assignment[..., None, :]).to(A.dtype)
    return A @ (together / together.sum(-1, keepdim=True))


def transition(
    A: Tensor,
    grid: tuple[int, int],
    config,
    weight_sum: float | Tensor = 1.0,
    clusters: Clusters | None = None,
) -> Tensor:
    r"""The transition matrix: ``A (…, N, N)`` in, ``S (…, N, N)`` out.

    .. math:: S = \beta S_{global} + (1 - \beta) S_{local}

    ``S_global`` takes all columns of ``A``, in ``clusters`` if there are any; ``S_local`` those in
    the window, and ``ε_self`` as it is on the diagonal. Each row sums to 1; with a signed rule such
    as ``l1`` the absolute values of either part do.
    """
    rule, temperature = config.rule, config.temperature
    A_global = A if clusters is None else merged(A, clusters.assignment)
    S_global = transition_global(A_global, rule, temperature, weight_sum)
    S_local = transition_local(
        A, config.self_affinity, grid, config.radius, rule, temperature, weight_sum
    )
    return config.beta * S_global + (1 - config.beta) * S_local


def transition_global(
    A: Tensor, rule: Normalization, temperature: float, weight_sum: float | Tensor = 1.0
) -> Tensor:
    """``S_global (…, N, N)`` from an affinity ``(…, N, N)``."""
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    if rule.exponential:
        return softmax_rows((A - 1) / temperature, eye)
    floor = empty_row_floor(rule, A.dtype, A.shape[-1], weight_sum)
    return over_row_sum(numerator(A, rule), eye, floor)


def transition_local(
    A: Tensor,
    itself: float | Tensor,
    grid: tuple[int, int],
    radius: int,
    rule: Normalization,
    temperature: float,
    weight_sum: float | Tensor = 1.0,
) -> Tensor:
    """``S_local (…, N, N)`` from an affinity ``(…, N, N)``, of which the windows are read.

    Args:
        itself: ``ε_self``, one for all tokens or ``(…, N)``.
        weight_sum: sum of the head weights that ``A`` was made with, ``(…, 1, 1)`` if a tensor.
    """
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    diagonal = eye.bool()
    elsewhere = ~(neighbours(grid, radius, A.device) | diagonal)
    if isinstance(itself, Tensor):
        itself = itself[..., None]
    if rule.exponential:
        # exp((a−1)/τ) with everything in the exponent, ε_self too.
        if isinstance(itself, Tensor):
            log_self: Tensor | float = itself.log()
        else:
            log_self = math.log(itself) if itself else -math.inf
        logits = torch.where(diagonal, log_self, (A - 1) / temperature)
        return softmax_rows(logits.masked_fill(elsewhere, -math.inf), eye)
    numerators = torch.where(diagonal, itself, numerator(A, rule))
    floor = empty_row_floor(rule, A.dtype, (2 * radius + 1) ** 2, weight_sum)
    return over_row_sum(numerators.masked_fill(elsewhere, 0), eye, floor)


def series_sum(alpha: float, steps: int) -> float:
    """``Σ α^t``, t = 0…L: ``(1−α^{L+1})/(1−α)`` without the 0/0 at ``α = 1``."""
    return sum(alpha**t for t in range(steps + 1))


def power_series(
    advance: Advance,
    G: Tensor,
    alpha: float,
    steps: Collection[int],
    on_step: Callable[[], None] = lambda: None,
) -> dict[int, Tensor]:
    r"""``P_t`` for each ``t`` in ``steps``, from one walk by Horner's scheme.

    .. math:: P_t = \frac{1 - \alpha}{1 - \alpha^{t+1}} \sum_{u=0}^{t} \alpha^u S^u G, \quad
              Y_0 = G, \quad Y_{t+1} = G + \alpha S Y_t, \quad P_t = Y_t / \sum_{u=0}^{t} \alpha^u

    Args:
        advance: takes ``Y`` and ``G`` to ``G + α S Y``.
        G: ``(…, N, K)``.
        alpha: probability that a walker moves on.
        steps: the numbers of steps that are wanted.
        on_step: called after each step.
    """
    results = {}
    Y = G
    for t in range(max(steps, default=0) + 1):
        if t > 0:
            Y = advance(Y, G)
            on_step()
        if t in steps:
            results[t] = Y / series_sum(alpha, t)
    return results


def towards_limit(
    advance: Advance,
    G: Tensor,
    alpha: float,
    tolerance: float,
    on_step: Callable[[], None] = lambda: None,
    largest: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[Tensor, int]:
    r"""``P∞`` within ``tolerance``, and the number of steps that it took.

    .. math:: X_0 = G, \quad X_{t+1} = (1 - \alpha) G + \alpha S X_t

    As :math:`\|S\|_\infty \le 1`, no row of :math:`P_\infty - X_t` has an absolute sum above
    :math:`\alpha / (1 - \alpha)` times the largest of :math:`X_t - X_{t-1}`; the walk stops when
    this is at most ``tolerance``. It ends at :func:`nerve_fast.numerics.steps_to_limit` in any
    case, where rounding keeps the change of a row above so small a tolerance.

    Args:
        advance: takes ``X`` and ``B`` to ``B + α S X``.
        G: ``(…, N, K)``.
        alpha: probability that a walker moves on, below 1.
        tolerance: above 0.
        on_step: called after each step.
        largest: of a number that several processes have, each of some rows; they stop together.
    """
    steps = steps_to_limit(alpha, tolerance, largest(G.detach().abs().sum(-1).max()).item())
    source = (1 - alpha) * G
    # A result of its own, where no step is needed.
    X = G.clone()
    for t in range(1, steps + 1):
        before, X = X, advance(X, source)
        on_step()
        change = largest((X - before).detach().abs().sum(-1).max()).item()
        if change * alpha / (1 - alpha) <= tolerance:
            return X, t
    return X, steps


def limit(S: Tensor, G: Tensor, alpha: float) -> Tensor:
    """``P∞ = (1−α)(I − αS)⁻¹ G`` by an exact solve in float64; ``alpha`` below 1.

    The measure of :func:`towards_limit`; ``S (…, N, N)`` and ``G (…, N, K)`` in.
    """
    S, G = S.double(), G.double()
    eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    return (1 - alpha) * torch.linalg.solve(eye - alpha * S, G)


def walk_along(
    advance: Advance,
    G: Tensor,
    config,
    return_steps: Collection[int] = (),
    on_step: Callable[[], None] = lambda: None,
    largest: Callable[[Tensor], Tensor] = lambda x: x,
) -> Walked:
    """The walk that ``config`` describes, and ``P_t`` for each ``t`` in ``return_steps``."""
    if config.steps is not None:
        steps = {config.steps, *return_steps}
        at_steps = power_series(advance, G, config.alpha, steps, on_step)
        probabilities, taken = at_steps[config.steps], config.steps
    else:
        probabilities, taken = towards_limit(
            advance, G, config.alpha, config.tolerance, on_step, largest
        )
        at_steps = power_series(advance, G, config.alpha, return_steps, on_step)
    return Walked(probabilities, {t: at_steps[t] for t in return_steps}, taken)


def random_walk(
    q: Tensor,
    k: Tensor,
    prior: Tensor,
    grid: tuple[int, int],
    config,
    head_weights: Tensor | None,
    *,
    route: str = "dense",
    stored_rows: int = 0,
    return_steps: Collection[int] = (),
    on_step: Callable[[], None] | None = None,
    clusters: Clusters | None = None,
) -> Walked:
    """The whole graph stage: entropy, weights, affinity, transition, walk.

    Args:
        q, k: ``(…, H, N, D)``.
        prior: ``G``, ``(…, N, K)``.
        grid: ``(h, w)`` with ``h · w = N``.
        config: a :class:`nerve_fast.NerveConfig`.
        head_weights: ``(…, H)``; ``None`` takes them from the heads' entropies.
        route, stored_rows: not used: the reference stores the whole of ``S``.
        return_steps: further numbers of steps after which the walk is wanted.
        on_step: called after each step, of all members of a batch at once.
        clusters: of the keys of the global part; ``None`` takes them one by one, whatever
            ``config.global_keys`` says.

    Returns:
        ``P (…, N, K)`` in float32, in float64 where an input is float64; with ``return_steps``
        the walk at those steps too.
    """
    w = head_weights
    if w is None and config.sharpness == 0:
        # Entropies may leave the range of the dtype where cosines do not.
        w = upcast(q).new_full(q.shape[:-2], 1 / q.shape[-3])
    elif w is None:
        w = entropy_weights(head_entropy(q, k), config.sharpness)
    A = cosine_affinity(q, k, w)
    S = transition(A, grid, config, w.to(A.dtype).sum(-1)[..., None, None], clusters)

    def advance(Y, G):
        return G + config.alpha * (S @ Y)

    return walk_along(
        advance, upcast(prior).to(S.dtype), config, return_steps, on_step or (lambda: None)
    )
