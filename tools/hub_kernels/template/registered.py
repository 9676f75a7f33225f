"""The kernels as operators of torch, which ``torch.compile`` takes whole."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from . import reference
from ._ops import add_op_namespace_prefix
from .clusters import cluster_keys
from .config import NerveConfig
from .kernels import backend
from .kernels.launch import MAX_RADIUS
from .normalization import NORMALIZATIONS
from .ops.checks import check_grid, check_head_weights, check_prior, check_qk

ROUTES = ("streaming", "dense", "factorized")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_IN_SCHEMA = {
    "float": "float",
    "int": "int",
    "str": "str",
    "float | None": "float?",
    "int | None": "int?",
}
_FIELDS = {field.name: _IN_SCHEMA[field.type] for field in dataclasses.fields(NerveConfig)}


def head_entropy(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """Mean entropy of each head's attention map, in nats; no map is stored.

    Args:
        q, k: ``(…, H, N, D)``, float16, bfloat16 or float32.
        scale: of the products ``q kᵀ``; ``None`` is ``1 / √D``.

    Returns:
        ``(…, H)`` float32.
    """
    _check(q, k)
    return _head_entropy(q, k, scale)


def cosine_affinity(q: Tensor, k: Tensor, head_weights: Tensor | None = None) -> Tensor:
    """Cosines of queries and keys, summed over the heads by their weights.

    Args:
        q, k: ``(…, H, N, D)``, float16, bfloat16 or float32.
        head_weights: ``(…, H)``; ``None`` keeps the heads apart.

    Returns:
        ``(…, N, N)``, or ``(…, H, N, N)`` without weights, in the dtype of ``q``.
    """
    _check(q, k, head_weights)
    return _cosine_affinity(q, k, head_weights)


def local_affinity(
    q: Tensor,
    k: Tensor,
    grid: tuple[int, int],
    head_weights: Tensor | None = None,
    radius: int = 1,
    self_affinity: float = 1.0,
) -> Tensor:
    """The same within a window of each token, in window order.

    Args:
        q, k: ``(…, H, N, D)``, float16, bfloat16 or float32.
        grid: ``(h, w)`` with ``h · w = N``.
        head_weights: ``(…, H)``; ``None`` keeps the heads apart.
        radius: the window is ``(2 · radius + 1)²`` tokens.
        self_affinity: the value in the middle of the window.

    Returns:
        ``(…, N, (2r+1)²)`` float32, with a heads axis before ``N`` without weights.
    """
    _check(q, k, head_weights)
    grid = check_grid(grid, q.shape[-2])
    _check_radius(radius)
    return _local_affinity(q, k, *grid, head_weights, radius, self_affinity)


def random_walk(
    q: Tensor,
    k: Tensor,
    prior: Tensor,
    grid: tuple[int, int],
    config: NerveConfig | None = None,
    head_weights: Tensor | None = None,
    route: str = "streaming",
) -> Tensor:
    """The whole graph stage: labels spread over the graph of image tokens.

    Args:
        q, k: ``(…, H, N, D)``, float16, bfloat16 or float32.
        prior: ``(…, N, K)``, a distribution over labels for each token.
        grid: ``(h, w)`` with ``h · w = N``, tokens in row-major order.
        config: settings; ``None`` is ``NerveConfig()``.
        head_weights: ``(…, H)``; ``None`` takes them from the heads' entropies.
        route: ``streaming`` stores no ``N × N``; ``dense`` does, and repeats steps faster where it
            fits; ``factorized`` is the cheapest and exact for the normalisations that are linear.

    Returns:
        ``(…, N, K)`` in the dtype of ``prior``.
    """
    _check(q, k, head_weights)
    check_prior(prior, q)
    grid = check_grid(grid, q.shape[-2])
    config = NerveConfig() if config is None else config
    _check_radius(config.radius)
    if route not in ROUTES:
        raise ValueError(f"route is {route!r}; expected one of {', '.join(ROUTES)}")
    if route == "factorized" and not NORMALIZATIONS[config.normalization].linear:
        raise ValueError(
            f"route is 'factorized', which is not exact for {config.normalization!r}; "
            "'streaming' and 'dense' are"
        )
    return _random_walk(q, k, prior, *grid, head_weights, route, *config.to_dict().values())


def _check(q: Tensor, k: Tensor, head_weights: Tensor | None = None) -> None:
    check_qk(q, k)
    if q.dtype not in _DTYPES:
        raise ValueError(f"q has dtype {q.dtype}; the kernels take float16, bfloat16 and float32")
    if head_weights is not None:
        check_head_weights(head_weights, q)


def _check_radius(radius: int) -> None:
    if not 1 <= radius <= MAX_RADIUS:
        raise ValueError(f"radius is {radius!r}; the kernels take 1 to {MAX_RADIUS}")


@torch.library.custom_op(
    add_op_namespace_prefix("head_entropy"),
    mutates_args=(),
    schema="(Tensor q, Tensor k, float? scale) -> Tensor",
)
def _head_entropy(q, k, scale):
    return backend.head_entropy(q, k, scale)


@_head_entropy.register_fake
def _(q, k, scale):
    return q.new_empty(q.shape[:-2], dtype=torch.float32)


@torch.library.custom_op(
    add_op_namespace_prefix("cosine_affinity"),
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor? head_weights) -> Tensor",
)
def _cosine_affinity(q, k, head_weights):
    return backend.cosine_affinity(q, k, head_weights)


@_cosine_affinity.register_fake
def _(q, k, head_weights):
    heads = q.shape[-3:-2] if head_weights is None else ()
    return q.new_empty(*q.shape[:-3], *heads, q.shape[-2], q.shape[-2])


@torch.library.custom_op(
    add_op_namespace_prefix("local_affinity"),
    mutates_args=(),
    schema="(Tensor q, Tensor k, int height, int width, Tensor? head_weights, int radius, "
    "float self_affinity) -> Tensor",
)
def _local_affinity(q, k, height, width, head_weights, radius, self_affinity):
    found = backend.local_affinity(q, k, (height, width), head_weights, radius, self_affinity)
    return found.contiguous()


@_local_affinity.register_fake
def _(q, k, height, width, head_weights, radius, self_affinity):
    heads = q.shape[-3:-2] if head_weights is None else ()
    window = (2 * radius + 1) ** 2
    return q.new_empty(*q.shape[:-3], *heads, q.shape[-2], window, dtype=torch.float32)


@torch.library.custom_op(
    add_op_namespace_prefix("random_walk"),
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor prior, int height, int width, Tensor? head_weights, "
    f"str route, {', '.join(f'{kind} {name}' for name, kind in _FIELDS.items())}) -> Tensor",
)
def _random_walk(q, k, prior, height, width, head_weights, route, *settings):
    config = NerveConfig(**dict(zip(_FIELDS, settings)))
    stored = q.shape[-2] if route == "dense" else 0
    clusters = None
    if config.global_keys is not None and config.global_keys < q.shape[-2]:
        if head_weights is None:
            entropy = backend.head_entropy(q, k, None)
            head_weights = reference.entropy_weights(entropy, config.sharpness)
        clusters = cluster_keys(k, head_weights, config.global_keys, prior)
    way = {"route": route, "stored_rows": stored, "clusters": clusters}
    walked = backend.random_walk(q, k, prior, (height, width), config, head_weights, **way)
    return walked.probabilities.contiguous()


@_random_walk.register_fake
def _(q, k, prior, *settings):
    return torch.empty_like(prior, memory_format=torch.contiguous_format)
