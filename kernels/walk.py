"""The random walk by three routes, one kernel a step; only the dense route stores ``S``.

Each route is a class whose ``step(Y, values, OUT=…, OUT_V=…, LAST=…, out_scale=…)`` starts the
kernels of one step: from ``Y (B, N, columns)`` float32, and ``values`` that the products read, to
``OUT`` and ``OUT_V`` of the same layout, or where it is the ``LAST`` step to the result
``OUT (B, N, K)``, times ``out_scale``.
"""

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from nerve_fast.clusters import Clusters
from nerve_fast.config import NerveConfig
from nerve_fast.kernels.dense import Dense
from nerve_fast.kernels.entropy import entropy_weights
from nerve_fast.kernels.factorized import Factorized
from nerve_fast.kernels.local import Local
from nerve_fast.kernels.operands import Operands
from nerve_fast.kernels.streaming import Streaming
from nerve_fast.walked import Walked

CHECK_EVERY = 4
"""Steps between two looks at how much ``Y`` still changes: each look waits for the device."""


def random_walk(
    q: Tensor,
    k: Tensor,
    prior: Tensor,
    grid: tuple[int, int],
    config: NerveConfig,
    head_weights: Tensor | None,
    *,
    route: str,
    stored_rows: int = 0,
    stored_dtype: torch.dtype | None = None,
    max_weight_sum: float | None = None,
    return_steps: Collection[int] = (),
    on_step: Callable[[], None] | None = None,
    clusters: Clusters | None = None,
) -> Walked:
    """As :func:`nerve_fast.reference.random_walk`, without waiting for the device.

    Only ``config.steps = None`` waits, every few steps, for how much the last step changed.

    Args:
        q, k: ``(…, H, N, D)``, float16, bfloat16 or float32.
        prior: ``G``, ``(…, N, K)``, any floating dtype.
        grid: ``(h, w)`` with ``h · w = N``.
        config: settings of the walk.
        head_weights: ``(…, H)``, used as given; ``None`` takes them from the heads' entropies.
        route: ``factorized`` (linear normalisations only), ``streaming`` or ``dense``.
        stored_rows: rows of ``S_global`` that the route ``dense`` keeps, at least 1; it makes the
            others again each step.
        stored_dtype: of those rows; ``None`` is that of ``q``. In float8 a row is kept relative to
            its largest numerator, and what is under 2⁻¹⁷ of that is lost: the bounds of the other
            dtypes do not hold.
        max_weight_sum: what no sum of head weights exceeds; ``None`` asks the given weights, which
            waits for the device.
        return_steps: the ``t`` of the ``P_t`` wanted besides, from the same walk, which goes on
            past ``config.steps`` for them.
        on_step: called for each member of the batch after a step was started.
        clusters: of the keys of the global part; ``None`` takes them one by one.

    Returns:
        The probabilities ``(…, N, K)``, in the dtype of ``prior``.

    Raises:
        ValueError: ``stored_dtype`` is float8, and numerators may be negative.
    """
    wanted = set(return_steps)
    if config.alpha == 0 or (config.steps == 0 and not any(wanted)):
        first = prior.clone(memory_format=torch.contiguous_format)
        copies = {t: first.clone() for t in sorted(wanted)}
        return Walked(first, copies, config.steps or 0)
    heads, tokens, head_dim = q.shape[-3:]
    q, k = (x.reshape(-1, heads, tokens, head_dim) for x in (q, k))
    if head_weights is not None:
        weights = head_weights.reshape(-1, heads).float().contiguous()
        scale = weights.amax(-1)
        if max_weight_sum is None:
            max_weight_sum = weights.sum(-1).max().item()
    else:
        max_weight_sum = 1.0
        if config.sharpness == 0:
            # The plain mean needs no entropies, which take N² operations where the walk may not.
            weights = q.new_full((len(q), heads), 1 / heads, dtype=torch.float32)
            scale = weights[:, 0].contiguous()
        else:
            weights, scale = entropy_weights(q, k, config.sharpness)
    G = prior.reshape(-1, *prior.shape[-2:])
    operands = Operands(q, k, G, grid, config, weights, scale, max_weight_sum, clusters)
    if config.beta == 0:
        way = Local(operands)
    elif route == "factorized":
        way = Factorized(operands)
    elif route == "dense" and stored_rows:
        way = Dense(operands, stored_rows, stored_dtype or q.dtype)
    else:
        way = Streaming(operands)
    horner = _Horner(operands, way, on_step)
    if config.steps is None:
        walked = _limit(horner, wanted, config)
    else:
        walked = _of_steps(horner, wanted, config.steps)
    shaped = {t: P.reshape(prior.shape) for t, P in sorted(walked.at_steps.items())}
    return Walked(walked.probabilities.reshape(prior.shape), shaped, walked.steps_taken)


class _Horner:
    """``Y ← G + α S Y`` from ``Y₀ = G``, in two buffers that take turns.

    Args:
        operands: what the steps share.
        way: the route's class.
        on_step: as :func:`random_walk` takes it.
    """

    def __init__(self, operands: Operands, way, on_step: Callable[[], None] | None):
        self.operands, self.way, self.on_step = operands, way, on_step
        self.alpha = operands.config.alpha
        self.taken = 0
        self._now, self._other = operands.buffers(), operands.buffers()
        operands.spread(*self._now)

    def advance(self) -> None:
        """Take one step."""
        Y, V = self._other
        self._step(OUT=Y, OUT_V=V, LAST=False, out_scale=1.0)
        self._now, self._other = self._other, self._now

    def finish(self) -> Tensor:
        """Take the last step, which writes ``P_t`` itself."""
        P = torch.empty_like(self.operands.G, memory_format=torch.contiguous_format)
        total = _series_sum(self.alpha, self.taken + 1)
        self._step(OUT=P, OUT_V=None, LAST=True, out_scale=1 / total)
        return P

    def probabilities(self, factor: float | None = None) -> Tensor:
        """``factor · Y``, ``(B, N, K)`` in the dtype of ``G``; without a factor ``P_t``."""
        if factor is None:
            factor = 1 / _series_sum(self.alpha, self.taken)
        return self.operands.gathered(self._now[0], factor)

    def change(self) -> float:
        """The largest absolute row sum of what the last step changed of ``Y``; waits for it."""
        # Columns that are no labels do not change.
        return (self._now[0] - self._other[0]).abs().sum(-1).amax().item()

    def _step(self, **out) -> None:
        Y, V = self._now
        self.way.step(Y, self.operands.values(Y, V), **out)
        self.taken += 1
        if self.on_step is not None:
            for _ in range(self.operands.batch):
                self.on_step()


def _of_steps(horner: _Horner, wanted: set[int], steps: int) -> Walked:
    """``P_L`` for ``L = steps``, and the ``P_t`` that are wanted."""
    seen = {}
    if 0 in wanted or steps == 0:
        seen[0] = horner.operands.G.clone(memory_format=torch.contiguous_format)
    final = max(steps, *wanted, 0)
    for t in range(1, final):
        horner.advance()
        if t in wanted or t == steps:
            seen[t] = horner.probabilities()
    seen[final] = horner.finish()
    return Walked(seen[steps], {t: seen[t] for t in wanted}, steps)


def _limit(horner: _Horner, wanted: set[int], config: NerveConfig) -> Walked:
    r"""``P∞`` within ``config.tolerance``, and the ``P_t`` that are wanted.

    With :math:`\|S\|_\infty \le 1`, :math:`(1-\alpha) Y_t` is off by no more than
    :math:`\frac{\alpha}{1-\alpha}` times what the last step changed of it, which is
    :math:`\alpha \|Y_t - Y_{t-1}\|_\infty`; each step shrinks that by :math:`\alpha`.
    """
    seen = {}
    if 0 in wanted:
        seen[0] = horner.operands.G.clone(memory_format=torch.contiguous_format)
    limit, steps_taken, most_steps = None, 0, math.inf
    while limit is None or horner.taken < max(wanted, default=0):
        horner.advance()
        t = horner.taken
        if t in wanted:
            seen[t] = horner.probabilities()
        if limit is None and (t % CHECK_EVERY == 0 or t >= most_steps):
            off = config.alpha * horner.change()
            if math.isinf(most_steps) and config.tolerance < off < math.inf:
                # What rounding adds to the change, no number of steps takes away.
                shrinking = math.log(config.tolerance / off) / math.log(config.alpha)
                most_steps = t + math.ceil(shrinking)
            # Not `off < tolerance`: NaN and infinity get no better.
            if t >= most_steps or not config.tolerance <= off < math.inf:
                limit, steps_taken = horner.probabilities(1 - config.alpha), t
    return Walked(limit, seen, steps_taken)


def _series_sum(alpha: float, steps: int) -> float:
    """``Σ α^t``, t = 0…L."""
    return sum(alpha**t for t in range(steps + 1))
