"""Head entropy in one pass over tiles: no attention map is stored."""

import itertools

import torch
from torch import Tensor

from nerve_fast.blocked.tiles import (
    MAX_COLUMNS,
    Scratch,
    filled,
    recomputed,
    tile_rows,
)
from nerve_fast.numerics import upcast, wants_gradient
from nerve_fast.shares import Share
from nerve_fast.utils.cores import on_cores, own_cores
from nerve_fast.utils.tiles import spans


def head_entropy(
    q: Tensor, k: Tensor, scale: float | None = None, share: Share | None = None
) -> Tensor:
    r"""As :func:`nerve_fast.reference.head_entropy`, from two numbers for each row and tile.

    A row's entropy is :math:`\mathrm{lse} - \sum_j p_j s_j`. Of each tile its own log-sum-exp and
    mean of :math:`s` are kept, and the tiles are then weighted by their share of the total.

    Where processes ``share`` the keys, ``k`` holds those of this process, and ``q`` the same rows
    on all of them: each finds these numbers for its own keys.
    """
    share = share or Share((1, k.shape[-2]))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rows, size = q.shape[-2], tile_rows(k.shape[-2], q.device)
    cores = 1
    if share.alone and not wants_gradient(q, k):
        cores = own_cores(k.shape[-2], q.device)

    def total(piece: tuple[tuple[int, ...], slice]) -> Tensor:
        # One by one, as keys that are expanded over a dimension should not be copied.
        head, part = piece
        return _of_rows(upcast(q[head][part]) * scale, upcast(k[head]), size, share).sum()

    heads = itertools.product(*map(range, q.shape[:-2]))
    parts = list(spans(rows, -(-rows // cores)))
    totals = on_cores(total, itertools.product(heads, parts), cores)
    return torch.stack(totals).view(*q.shape[:-2], len(parts)).sum(-1) / rows


def entropy_of_all(q: Tensor, k: Tensor, share: Share) -> Tensor:
    """:func:`head_entropy` of all rows of all processes, ``(…, H)``; ``q``, ``k``: the own ones."""
    parts = [
        head_entropy(rows, k, share=share) * (rows.shape[-2] / share.tokens)
        for rows in share.in_turn(q)
    ]
    return parts[0] if share.alone else torch.stack(parts).sum(0)


def _of_rows(q: Tensor, k: Tensor, size: int, share: Share) -> Tensor:
    """The entropy of each row of one head, ``(M, D)`` and ``(N, D)``: ``(M,)``."""

    gradient = wants_gradient(q, k)
    logits, shares = Scratch(q, gradient), Scratch(q, gradient)

    def of_rows(q, k):
        columns = list(spans(len(k), MAX_COLUMNS))
        lse, mean = q.new_empty(len(q), len(columns)), q.new_empty(len(q), len(columns))
        for tile, keys in enumerate(columns):
            size = len(q), keys.stop - keys.start
            s = torch.mm(q, k[keys].mT, out=logits.tile(*size))
            p = torch.softmax(s, -1, out=shares.tile(*size))
            # The largest probability is exp(max − lse), which is never 0.
            lse[:, tile] = s.amax(-1) - p.amax(-1).log()
            mean[:, tile] = torch.mul(p, s, out=shares.tile(*size)).sum(-1)
        whole = lse.logsumexp(-1)
        return torch.stack([whole, torch.linalg.vecdot(lse.softmax(-1), mean)], dim=-1)

    found = filled(q.new_empty(len(q), 2), size, lambda rows: recomputed(of_rows, q[rows], k))
    if share.alone:
        return found[:, 0] - found[:, 1]
    # Each process's keys are one more tile.
    lse = found[:, 0]
    largest = share.largest(lse)
    weight = (lse - largest).exp()
    sums = share.total(torch.stack([weight, weight * found[:, 1]], dim=-1))
    return largest + sums[:, 0].log() - sums[:, 1] / sums[:, 0]


def row_entropies(q: Tensor, k: Tensor) -> Tensor:
    """The entropy of each row of one head, ``(N,)`` from ``q`` and ``k (N, D)``."""
    scale = q.shape[-1] ** -0.5
    size = tile_rows(len(k), q.device)
    return _of_rows(upcast(q) * scale, upcast(k), size, Share((1, len(k))))
