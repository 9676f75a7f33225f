"""The operations as kernels, for CUDA and ROCm: what :mod:`nerve_fast.dispatch` calls ``triton``.

The functions mirror those of :mod:`nerve_fast.reference` and take what :mod:`nerve_fast.ops` has
checked.
"""

import math
from collections.abc import Callable, Collection

from torch import Tensor

from nerve_fast.clusters import Clusters
from nerve_fast.config import NerveConfig
from nerve_fast.kernels import walk
from nerve_fast.kernels.affinity import cosine_affinity, local_affinity
from nerve_fast.kernels.entropy import head_entropy
from nerve_fast.kernels.graphs import replayed
from nerve_fast.kernels.numerators import ROUNDING
from nerve_fast.kernels.stencil import local_matmul, local_series, local_transition
from nerve_fast.walked import Walked
from nerve_fast.weights import is_capturing, known_sum, largest_sum

__all__ = [
    "cosine_affinity",
    "head_entropy",
    "local_affinity",
    "local_matmul",
    "local_series",
    "local_transition",
    "random_walk",
]


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
    return_steps: Collection[int] = (),
    on_step: Callable[[], None] | None = None,
    clusters: Clusters | None = None,
) -> Walked:
    """As :func:`nerve_fast.kernels.walk.random_walk`; where shapes repeat, from a CUDA graph.

    A walk to the limit has no graph: how many steps it takes is known when they are taken. Nor has
    one with clusters: it is on so many tokens that it takes longer than its launches do.
    ``on_step`` is called when the steps were started, for each step of each member of the batch.
    """
    max_weight_sum = None
    if head_weights is not None:
        max_weight_sum = known_sum(head_weights)
        if max_weight_sum is None:
            # While a graph is recorded nothing can be asked of the device. With weights of any size
            # one more pass finds what each row's largest numerator is.
            max_weight_sum = math.inf if is_capturing(q.device) else largest_sum(head_weights)
        # Weights that sum to 1 do so up to rounding: that is no other walk.
        max_weight_sum = 1.0 if max_weight_sum <= 1 + ROUNDING else max_weight_sum
    way = {"route": route, "stored_rows": stored_rows, "max_weight_sum": max_weight_sum}
    wanted = tuple(sorted(set(return_steps)))
    if config.steps is None or clusters is not None:
        way |= {"return_steps": wanted, "on_step": on_step, "clusters": clusters}
        return walk.random_walk(q, k, prior, grid, config, head_weights, **way)

    def outputs(q, k, prior, head_weights):
        walked = walk.random_walk(
            q, k, prior, grid, config, head_weights, **way, return_steps=wanted
        )
        return (walked.probabilities, *walked.at_steps.values())

    settings = (grid, config, *way.values(), wanted)
    stored = prior.shape[:-1].numel() * stored_rows * q.element_size()
    probabilities, *others = replayed(outputs, settings, (q, k, prior, head_weights), stored)
    if on_step is not None:
        for _ in range(config.steps * prior.shape[:-2].numel()):
            on_step()
    return Walked(probabilities, dict(zip(wanted, others, strict=True)), config.steps)
