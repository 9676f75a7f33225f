"""Packed heads: with them ``A = Q̃ K̃ᵀ`` is one product, whatever the number of heads."""

import torch
from torch import Tensor

from nerve_fast.numerics import with_norms


def pack(q: Tensor, k: Tensor, head_weights: Tensor) -> tuple[Tensor, Tensor]:
    """``Q̃ = concat_h(w_h q̂_h)`` and ``K̃ = concat_h(k̂_h)``, each ``(…, N, H·D)``."""
    return pack_queries(q, head_weights), pack_keys(k)


def pack_queries(q: Tensor, head_weights: Tensor) -> Tensor:
    """``Q̃`` of :func:`pack`."""
    # Reordered and widened in the same pass, because new memory costs more than arithmetic here.
    return with_norms(q.transpose(-3, -2), head_weights[..., None, :, None]).flatten(-2)


def pack_keys(k: Tensor) -> Tensor:
    """``K̃`` of :func:`pack`."""
    return pack_queries(k, torch.ones(k.shape[:-2], dtype=torch.float32, device=k.device))
