"""The operations as kernels, for CUDA and ROCm: what :mod:`nerve_fast.dispatch` calls ``triton``.

Mirrors :mod:`nerve_fast.reference` and takes what :mod:`nerve_fast.ops` has checked.
"""

import math

from torch import Tensor

from nerve_fast.kernels import walk
from nerve_fast.kernels.affinity import cosine_affinity, local_affinity
from nerve_fast.kernels.entropy import head_entropy
from nerve_fast.kernels.graphs import is_capturing, replayed

__all__ = ["cosine_affinity", "head_entropy", "local_affinity", "random_walk"]


def random_walk(
    q: Tensor,
    k: Tensor,
    prior: Tensor,
    grid: tuple[int, int],
    config,
    head_weights: Tensor | None,
    *,
    route: str,
    stored_rows: int = 0,
) -> Tensor:
    """As :func:`nerve_fast.kernels.walk.random_walk`; where shapes repeat, from a CUDA graph."""
    # Known before the graph: within one nothing can be asked of the device.
    most = None
    if head_weights is not None and is_capturing(q.device):
        # Whatever they are: one more pass finds what each row's largest numerator is.
        most = math.inf
    elif head_weights is not None:
        most = float(head_weights.float().sum(-1).max())
        # Weights that sum to 1 do so up to rounding: that is no other walk.
        most = 1.0 if most <= 1 + 1e-5 else most

    def walked(q, k, prior, head_weights):
        return walk.random_walk(
            q, k, prior, grid, config, head_weights, route=route, stored_rows=stored_rows, most=most
        )  # fmt: skip

    settings = (grid, config, route, stored_rows, most)
    stored = prior.shape[:-1].numel() * stored_rows * q.element_size()
    return replayed(walked, settings, (q, k, prior, head_weights), stored)
