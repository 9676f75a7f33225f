"""The operations as ``torch.library`` operators, which ``torch.compile`` takes whole.

Outside the compiler the public functions are called as they are; while it traces, they put in their
own place one of these operators, whose implementation calls them when the program runs. So checks
of values, the choice of a backend and of a route happen then, and no graph is broken.
"""

from typing import Optional

import torch
from torch import Tensor

from nerve_fast.dispatch import wants_grad


def compiled(*inputs: Tensor | None) -> bool:
    """Whether an operator should stand for the call: the compiler traces, and wants no gradient."""
    return torch.compiler.is_compiling() and not wants_grad(*inputs)


# Annotations as the schema's parser knows them.
# ruff: noqa: UP045


@torch.library.custom_op("nerve_fast::head_entropy", mutates_args=())
def head_entropy(q: Tensor, k: Tensor, scale: Optional[float], backend: str) -> Tensor:
    """See :func:`nerve_fast.head_entropy`."""
    from nerve_fast.ops import entropy

    return entropy.head_entropy(q, k, scale=scale, backend=backend)


@head_entropy.register_fake
def _(q, k, scale, backend):
    return q.new_empty(q.shape[:-2], dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("nerve_fast::cosine_affinity", mutates_args=())
def cosine_affinity(q: Tensor, k: Tensor, head_weights: Optional[Tensor], backend: str) -> Tensor:
    """See :func:`nerve_fast.cosine_affinity`."""
    from nerve_fast.ops import affinity

    return affinity.cosine_affinity(q, k, head_weights, backend=backend)


@cosine_affinity.register_fake
def _(q, k, head_weights, backend):
    heads = () if head_weights is not None else q.shape[-3:-2]
    return q.new_empty(*q.shape[:-3], *heads, q.shape[-2], q.shape[-2])


@torch.library.custom_op("nerve_fast::local_affinity", mutates_args=())
def local_affinity(
    q: Tensor,
    k: Tensor,
    height: int,
    width: int,
    head_weights: Optional[Tensor],
    radius: int,
    self_affinity: float,
    backend: str,
) -> Tensor:
    """The values of :func:`nerve_fast.local_affinity`, contiguous."""
    from nerve_fast.ops import affinity

    return affinity.local_affinity(
        q,
        k,
        (height, width),
        head_weights=head_weights,
        radius=radius,
        self_affinity=self_affinity,
        backend=backend,
    ).values.contiguous()


@local_affinity.register_fake
def _(q, k, height, width, head_weights, radius, self_affinity, backend):
    heads = () if head_weights is not None else q.shape[-3:-2]
    dtype = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(*q.shape[:-3], *heads, q.shape[-2], (2 * radius + 1) ** 2, dtype=dtype)


@torch.library.custom_op("nerve_fast::random_walk", mutates_args=())
def random_walk(
    q: Tensor,
    k: Tensor,
    prior: Tensor,
    height: int,
    width: int,
    head_weights: Optional[Tensor],
    alpha: float,
    beta: float,
    steps: int,
    radius: int,
    self_affinity: float,
    sharpness: float,
    normalization: str,
    temperature: float,
    global_stride: int,
    backend: str,
    route: str,
    max_memory: Optional[str],
) -> Tensor:
    """See :func:`nerve_fast.random_walk`; the fields of its config one by one."""
    from nerve_fast.config import NerveConfig
    from nerve_fast.ops import walk

    config = NerveConfig(
        alpha=alpha,
        beta=beta,
        steps=steps,
        radius=radius,
        self_affinity=self_affinity,
        sharpness=sharpness,
        normalization=normalization,
        temperature=temperature,
        global_stride=global_stride,
    )
    return walk.random_walk(
        q,
        k,
        prior,
        (height, width),
        config,
        head_weights=head_weights,
        backend=backend,
        route=route,
        max_memory=max_memory,
    )


@random_walk.register_fake
def _(q, k, prior, *settings):
    return torch.empty_like(prior, memory_format=torch.contiguous_format)
