"""How far clustered keys are off: rows drawn at random, with all keys and with clusters."""

import torch
from torch import Tensor

from nerve_fast.blocked.walk import Keys, Rows, SpreadKeys, queries
from nerve_fast.clusters import SEED, ClusterError, Clusters
from nerve_fast.numerics import relative_error, upcast

ROWS = 256
"""Rows that are compared, at most."""


@torch.no_grad()
def cluster_error(
    q: Tensor,
    k: Tensor,
    prior: Tensor,
    head_weights: Tensor,
    config,
    clusters: Clusters,
) -> ClusterError:
    """``S_global G`` of :data:`ROWS` rows with ``clusters`` beside the same with all keys.

    That is what the first step of the walk makes of the prior. Rows are drawn by a fixed seed.
    Where processes share the tokens of ``clusters``, each has its own, and all find the same.

    Args:
        q, k: ``(H, N, D)``.
        prior: ``G``, ``(N, K)``.
        head_weights: ``(H,)``.
        config: a :class:`nerve_fast.NerveConfig`.
        clusters: of the keys, ``(N,)``.
    """
    share = clusters.share
    drawn = torch.randperm(share.tokens, generator=torch.Generator().manual_seed(SEED))
    rows = drawn[:ROWS].to(q.device)
    packed_q = queries(share.picked(q, rows), head_weights, config)
    dtype = packed_q.dtype
    weight_sum = upcast(head_weights).sum().item()
    G = prior.to(dtype)
    own = share.picked(G, rows)
    exact, approximate = (
        Rows(packed_q, keys, config, dtype, weight_sum, gradient=False).step(G, own)
        for keys in (SpreadKeys(k, share), Keys(k, clusters, share))
    )
    # Where seeds are few and far all rows may be empty.
    relative = relative_error(approximate, exact) if exact.any() else 0.0
    equal = (approximate.argmax(-1) == exact.argmax(-1)).double().mean().item()
    return ClusterError(relative, equal, len(rows))


def error_memory(heads: int, tokens: int, head_dim: int, labels: int, itemsize: int) -> int:
    """Bytes that :func:`cluster_error` takes beyond its inputs and the tiles of a walk, a bound."""
    packed = tokens * heads * (head_dim + 8)
    return itemsize * (packed + 4 * tokens * (labels + 1))
