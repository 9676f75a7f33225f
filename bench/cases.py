"""What is measured: each function makes its inputs and returns a run without arguments."""

import math

import torch
from torch.nn.functional import scaled_dot_product_attention, unfold

from nerve_fast import NerveConfig, blocked, reference

HEADS, HEAD_DIM = 5, 64


def grid_of(tokens: int) -> tuple[int, int]:
    """The grid nearest to a square."""
    height = math.isqrt(tokens)
    while tokens % height:
        height -= 1
    return height, tokens // height


def inputs(tokens: int, labels: int, dtype: torch.dtype = torch.float32):
    """Queries, keys, prior and head weights. Values do not change how long anything takes."""
    q, k = (torch.randn(HEADS, tokens, HEAD_DIM, dtype=dtype) for _ in range(2))
    return q, k, torch.rand(tokens, labels).softmax(-1), torch.full((HEADS,), 1 / HEADS)


def reference_walk(tokens, labels, normalization, steps=10):
    q, k, prior, weights = inputs(tokens, labels)
    config = NerveConfig(normalization=normalization, steps=steps)
    return lambda: reference.random_walk(q, k, prior, grid_of(tokens), config, weights)


def blocked_walk(tokens, labels, normalization, route, dtype=torch.float32, steps=10):
    q, k, prior, weights = inputs(tokens, labels, dtype)
    config = NerveConfig(normalization=normalization, steps=steps)
    return lambda: blocked.random_walk(
        q, k, prior, grid_of(tokens), config, weights, route=route, stored_rows=tokens
    )


def reference_entropy(tokens):
    q, k, _, _ = inputs(tokens, 1)
    return lambda: reference.head_entropy(q, k)


def blocked_entropy(tokens):
    q, k, _, _ = inputs(tokens, 1)
    return lambda: blocked.head_entropy(q, k)


def blocked_local_walk(tokens, labels, steps=10):
    """The local affinity and ``steps`` steps of it alone (β = 0)."""
    q, k, prior, weights = inputs(tokens, labels)
    config = NerveConfig(beta=0.0, steps=steps)
    return lambda: blocked.random_walk(
        q, k, prior, grid_of(tokens), config, weights, route="streaming"
    )


def sdpa_walk(tokens, labels, dtype, steps=10):
    """The streaming ``softmax`` walk with torch's own attention: head dimension H·D, values Y."""
    q, k, prior, weights = inputs(tokens, labels, dtype)
    grid, config = grid_of(tokens), NerveConfig()

    def run():
        packed_q, packed_k = blocked.affinity.pack(q, k, weights)
        values = blocked.affinity.packed_local(packed_q, packed_k, grid, 1, 1.0)
        S_local = blocked.stencil.transition(values, grid, 1, "softmax", config.temperature)
        queries, keys = (x.to(dtype)[None, None] for x in (packed_q, packed_k))
        Y = prior
        for _ in range(steps):
            moved = scaled_dot_product_attention(
                queries, keys, Y.to(dtype)[None, None], scale=1 / config.temperature
            )[0, 0].to(prior.dtype)
            nearby = blocked.stencil.matmul(S_local, grid, 1, Y)
            Y = prior + config.alpha * (config.beta * moved + (1 - config.beta) * nearby)
        return Y

    return run


def unfold_local_walk(tokens, labels, steps=10):
    """The same by gathering neighbours with ``torch.nn.functional.unfold``."""
    q, k, prior, weights = inputs(tokens, labels)
    grid = grid_of(tokens)
    config = NerveConfig()

    def neighbours(x):
        """``(N, C)`` to ``(N, C, 9)``."""
        return (
            unfold(x.T.unflatten(1, grid)[None], 3, padding=1)[0]
            .unflatten(0, (-1, 9))
            .permute(2, 0, 1)
        )

    def run():
        packed_q, packed_k = blocked.affinity.pack(q, k, weights)
        affinity = (packed_q[:, :, None] * neighbours(packed_k)).sum(1)
        affinity[:, 4] = config.self_affinity
        S = blocked.stencil.transition(affinity, grid, 1, "softmax", config.temperature)
        Y = prior
        for _ in range(steps):
            Y = prior + config.alpha * (neighbours(Y) * S[:, None, :]).sum(-1)
        return Y

    return run
