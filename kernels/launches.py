"""Which kernels the public operations would start on a GPU that is not there."""

from collections.abc import Iterable

import torch

from nerve_fast.config import NerveConfig
from nerve_fast.kernels import affinity, configs, entropy, stencil, walk
from nerve_fast.kernels.compiled import signature
from nerve_fast.kernels.launch import Config, Launch, fp8_of, recorded
from nerve_fast.normalization import NORMALIZATIONS

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

SHAPES = ((5, 64, 21), (8, 40, 171), (20, 64, 1), (8, 160, 21))
"""Heads, head dimension, labels: Stable Diffusion 2 and 1 at their finest layers and further down,
and data sets from one label to 171."""


def launches(target: str, dtype: torch.dtype, quick: bool = False) -> list[Launch]:
    """All different kernels that the operations would start on ``target`` for ``dtype``.

    Args:
        quick: only Stable Diffusion 2's finest layer with 21 labels, and first configurations.
    """
    # Those that keep the most of a row, and those that need a pass for the sums of rows.
    extremes = [x.name for x in NORMALIZATIONS.values() if x.exponential or x.signed]
    with recorded(target) as started:
        _operations(*SHAPES[0], dtype, NORMALIZATIONS)
        if not quick:
            for shape in SHAPES[1:]:
                _operations(*shape, dtype, extremes)
            # Nothing divisible by anything: other loads, and sizes of 1 that become constants.
            _operations(1, 7, 15, dtype, NORMALIZATIONS, grid=(1, 17))
            for name in configs.CANDIDATES:
                for config in _all_candidates(name, target, dtype):
                    with configs.forcing(name, config):
                        _operations(*SHAPES[0], dtype, extremes)
    return _different(started)


def launches_of(
    target: str, dtype: torch.dtype, shape: tuple[int, int, int], normalizations: Iterable[str]
) -> list[Launch]:
    """Those for one shape ``(H, D, K)`` of a grid of 64 × 64 tokens, with first configurations."""
    with recorded(target) as started:
        _operations(*shape, dtype, normalizations)
    return _different(started)


def _different(started: Iterable[Launch]) -> list[Launch]:
    found: dict[tuple, Launch] = {}
    for one in started:
        found.setdefault((one.kernel.__name__, repr(signature(one)), one.config), one)
    return list(found.values())


def _all_candidates(name: str, target: str, dtype: torch.dtype) -> tuple[Config, ...]:
    """Return all candidates that fit Stable Diffusion 2's finest layer."""
    heads, head_dim, _ = SHAPES[0]
    shape = {
        "head_entropy": {"kept": head_dim},
        "cosine_affinity": {},
        "local_affinity": {"loaded": head_dim},
        "streaming_step": {"kept": heads * head_dim, "labels": 32},
        "row_statistic": {"kept": heads * head_dim},
    }.get(name, {"labels": 32})
    return configs.candidates(name, torch.empty(0, dtype=dtype, device="meta"), **shape)


def _operations(
    heads: int,
    head_dim: int,
    labels: int,
    dtype: torch.dtype,
    normalizations: Iterable[str],
    grid: tuple[int, int] = (64, 64),
) -> None:
    """Call every operation and route on tensors without storage."""
    tokens = grid[0] * grid[1]
    q, k = (torch.empty(heads, tokens, head_dim, dtype=dtype, device="meta") for _ in range(2))
    G = torch.empty(tokens, labels, device="meta")
    weights = torch.empty(heads, device="meta")
    affinity.cosine_affinity(q, k, weights)
    affinity.cosine_affinity(q, k)
    entropy.head_entropy(q, k)
    for radius in (1, 4):
        local = affinity.local_affinity(q, k, grid, weights, radius, 1.0)
        stencil.local_matmul(local, grid, radius, G)
    for name in normalizations:
        normalization = NORMALIZATIONS[name]
        config = NerveConfig(steps=2, normalization=name)
        stored = {"route": "dense", "stored_rows": tokens}
        ways = [{"route": "streaming"}, stored]
        if normalization.linear:
            ways.append({"route": "factorized"})
        elif dtype == torch.bfloat16 and fp8_of("meta") is not None:
            ways.append({**stored, "stored_dtype": fp8_of("meta")})
        for way in ways:
            walk.random_walk(q, k, G, grid, config, None, **way)
        if normalization.exponential:
            local = config.replace(beta=0.0, radius=4)
            walk.random_walk(q, k, G, grid, local, None, route="streaming")
