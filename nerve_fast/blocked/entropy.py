"""Head entropy in one pass over tiles: no attention map is stored."""

import itertools

import torch
from torch import Tensor

from nerve_fast.blocked.tiles import (
    MAX_COLUMNS,
    filled,
    recomputed,
    tile_rows,
)
from nerve_fast.numerics import MAX_EXPONENT, upcast, wants_gradient
from nerve_fast.shares import Share
from nerve_fast.utils.tiles import Scratch, spans


def head_entropy(
    q: Tensor, k: Tensor, scale: float | None = None, share: Share | None = None
) -> Tensor:
    r"""As :func:`nerve_fast.reference.head_entropy`, from two numbers for each row and tile.

    Of each tile its own log-sum-exp and entropy are kept. Tile :math:`t` has the share :math:`w_t`
    of the row, and the row's entropy is :math:`\sum_t w_t (H_t - \log w_t)`. Logits are taken
    relative to the largest of a tile, as the difference of two large numbers would lose digits. On
    a CPU, where norms say that no exponential can leave the range, they are taken as they are.

    Where processes ``share`` the keys, ``k`` holds those of this process, and ``q`` the same rows
    on all of them: each finds these numbers for its own keys.
    """
    share = share or Share((1, k.shape[-2]))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    # Two tiles are worked on at a time.
    size = tile_rows(k.shape[-2], q.device) // 2
    tiles = Tiles(upcast(q.new_empty(0)), wants_gradient(q, k))
    means = [
        # One by one, as keys that are expanded over a dimension should not be copied.
        _of_rows(upcast(q[head]) * scale, upcast(k[head]), size, share, tiles).mean()
        for head in itertools.product(*map(range, q.shape[:-2]))
    ]
    return torch.stack(means).view(q.shape[:-2])


def entropy_of_all(q: Tensor, k: Tensor, share: Share) -> Tensor:
    """:func:`head_entropy` of all rows of all processes, ``(…, H)``; ``q``, ``k``: the own ones."""
    parts = [
        head_entropy(rows, k, share=share) * (rows.shape[-2] / share.tokens)
        for rows in share.in_turn(q)
    ]
    return parts[0] if share.alone else torch.stack(parts).sum(0)


class Tiles:
    """Memory of the logits and of the exponentials of tiles, for one after another."""

    def __init__(self, like: Tensor, gradient: bool):
        self.logits, self.exponentials = Scratch(like, gradient), Scratch(like, gradient)


def _of_rows(q: Tensor, k: Tensor, size: int, share: Share, tiles: Tiles) -> Tensor:
    """The entropy of each row of one head, ``(M, D)`` and ``(N, D)``: ``(M,)``."""
    logits, exponentials = tiles.logits, tiles.exponentials

    def sums_of(q, k):
        sums = None
        for keys in spans(len(k), MAX_COLUMNS):
            size = len(q), keys.stop - keys.start
            s = torch.mm(q, k[keys].mT, out=logits.tile(*size))
            weights = torch.exp(s, out=exponentials.tile(*size))
            total = weights.sum(-1)
            # Into the logits, which nothing needs any more.
            weighted = torch.mul(weights, s, out=logits.tile(*size)).sum(-1)
            both = torch.stack([total, weighted], dim=-1)
            sums = both if sums is None else sums.add_(both)
        return sums

    def of_any(q, k):
        columns = list(spans(len(k), MAX_COLUMNS))
        lse, entropy = q.new_empty(len(q), len(columns)), q.new_empty(len(q), len(columns))
        for tile, keys in enumerate(columns):
            size = len(q), keys.stop - keys.start
            s = torch.mm(q, k[keys].mT, out=logits.tile(*size))
            # Neither result's derivative is changed by what is subtracted.
            largest = s.detach().amax(-1, keepdim=True)
            s = torch.sub(s, largest, out=logits.tile(*size))
            weights = torch.exp(s, out=exponentials.tile(*size))
            total = weights.sum(-1)
            weighted = torch.mul(weights, s, out=logits.tile(*size)).sum(-1)
            lse[:, tile] = largest[:, 0] + total.log()
            entropy[:, tile] = total.log() - weighted / total
        # The derivative of `w log w` is not finite at 0, where a tile has no share of a row.
        log_weight = lse.log_softmax(-1)
        mixed = torch.linalg.vecdot(log_weight.exp(), entropy - log_weight)
        return torch.stack([lse.logsumexp(-1), mixed], dim=-1)

    # Looking costs a pass over q and k, and spares some over all logits; a GPU would wait for it.
    looks = q.device.type == "cpu" and not wants_gradient(q, k)
    small = looks and _largest_norm(q) * _largest_norm(k) < MAX_EXPONENT
    of_rows = sums_of if small else of_any
    found = filled(q.new_empty(len(q), 2), size, lambda rows: recomputed(of_rows, q[rows], k))
    if small:
        total, weighted = found.unbind(-1)
        lse = total.log()
        entropy = lse - weighted / total
    else:
        lse, entropy = found.unbind(-1)
    if share.alone:
        return entropy
    # Each process's keys are one more tile.
    above = lse - share.largest(lse)
    weight = above.exp()
    total, mixed = share.total(torch.stack([weight, weight * (entropy - above)], -1)).unbind(-1)
    return mixed / total + total.log()


def _largest_norm(x: Tensor) -> float:
    return torch.linalg.vector_norm(x, dim=-1).amax().item()


def row_entropies(q: Tensor, k: Tensor) -> Tensor:
    """The entropy of each row of one head, ``(N,)`` from ``q`` and ``k (N, D)``."""
    scale = q.shape[-1] ** -0.5
    size = tile_rows(len(k), q.device)
    tiles = Tiles(upcast(q.new_empty(0)), wants_gradient(q, k))
    return _of_rows(upcast(q) * scale, upcast(k), size, Share((1, len(k))), tiles)
