"""The walk as a layer without state of its own."""

from __future__ import annotations

from torch import Tensor, nn

from .registered import random_walk


class RandomWalk(nn.Module):
    """Spreads a prior over the graph of image tokens with the default settings."""

    has_backward = False
    can_torch_compile = True

    def forward(self, q: Tensor, k: Tensor, prior: Tensor, grid: tuple[int, int]) -> Tensor:
        """``q, k (…, H, N, D)`` and ``prior (…, N, K)`` in, ``(…, N, K)`` out."""
        return random_walk(q, k, prior, grid)
