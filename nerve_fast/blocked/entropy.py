"""Head entropy in one pass over tiles: no attention map is stored."""

import torch
from torch import Tensor

from nerve_fast.blocked.tiles import MAX_COLUMNS, filled, recomputed, tile_rows
from nerve_fast.numerics import upcast
from nerve_fast.utils.tiles import spans


def head_entropy(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    r"""As :func:`nerve_fast.reference.head_entropy`, from two numbers for each row and tile.

    A row's entropy is :math:`\mathrm{lse} - \sum_j p_j s_j`. Of each tile its own log-sum-exp and
    mean of :math:`s` are kept, and the tiles are then weighted by their share of the total.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    size = tile_rows(k.shape[-2], q.device)
    means = [
        _row_entropies(upcast(q_head) * scale, upcast(k_head), size).mean()
        for q_head, k_head in zip(*(x.reshape(-1, *x.shape[-2:]) for x in (q, k)), strict=True)
    ]
    return torch.stack(means).view(q.shape[:-2])


def _row_entropies(q: Tensor, k: Tensor, size: int) -> Tensor:
    """The entropy of each row of one head, ``(M, D)`` and ``(N, D)``: ``(M,)``."""

    def of_rows(q, k):
        columns = list(spans(len(k), MAX_COLUMNS))
        lse, mean = q.new_empty(len(q), len(columns)), q.new_empty(len(q), len(columns))
        for tile, keys in enumerate(columns):
            s = q @ k[keys].mT
            p = s.softmax(-1)
            # The largest probability is exp(max − lse), which is never 0.
            lse[:, tile] = s.amax(-1) - p.amax(-1).log()
            mean[:, tile] = torch.linalg.vecdot(p, s)
        return lse.logsumexp(-1) - torch.linalg.vecdot(lse.softmax(-1), mean)

    return filled(q.new_empty(len(q)), size, lambda rows: recomputed(of_rows, q[rows], k))
