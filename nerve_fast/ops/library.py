"""The operations as ``torch.library`` operators, which ``torch.compile`` takes whole.

Outside the compiler the public functions call :mod:`nerve_fast.ops.eager`; while it traces, they
put one of these operators in their own place, whose implementation makes that call when the program
runs. So checks of values, the choice of a backend and of a route happen then, and no graph is
broken. The backward pass makes the same call again and takes its gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nerve_fast.config import NerveConfig
from nerve_fast.dispatch import wants_grad
from nerve_fast.ops import eager
from nerve_fast.ops.gradients import gradients_of, on_a_thread


def compiled() -> bool:
    """Whether the compiler traces, so that an operator stands for the call."""
    return torch.compiler.is_compiling()


def head_entropy(q: Tensor, k: Tensor, scale: float | None, backend: str) -> Tensor:
    """The operator of :func:`nerve_fast.ops.eager.head_entropy`."""
    return _head_entropy(q, k, scale, backend, wants_grad(q, k))[0]


def cosine_affinity(q: Tensor, k: Tensor, head_weights: Tensor | None, backend: str) -> Tensor:
    """The operator of :func:`nerve_fast.ops.eager.cosine_affinity`."""
    return _cosine_affinity(q, k, head_weights, backend, wants_grad(q, k, head_weights))[0]


def local_affinity(
    q: Tensor,
    k: Tensor,
    head_weights: Tensor | None,
    grid: tuple[int, int],
    radius: int,
    self_affinity: float,
    backend: str,
) -> Tensor:
    """The operator of :func:`nerve_fast.ops.eager.local_affinity`."""
    requires_grad = wants_grad(q, k, head_weights)
    return _local_affinity(
        q, k, head_weights, *grid, radius, self_affinity, backend, requires_grad
    )[0]


def local_transition(
    values: Tensor, grid: tuple[int, int], radius: int, config: NerveConfig, backend: str
) -> Tensor:
    """The operator of :func:`nerve_fast.ops.eager.local_transition`."""
    settings = (radius, config.normalization, config.temperature, backend, wants_grad(values))
    return _local_transition(values, *grid, *settings)[0]


def local_matmul(
    values: Tensor, x: Tensor, grid: tuple[int, int], radius: int, backend: str
) -> Tensor:
    """The operator of :func:`nerve_fast.ops.eager.local_matmul`."""
    return _local_matmul(values, x, *grid, radius, backend, wants_grad(values, x))[0]


def local_series(
    values: Tensor,
    prior: Tensor,
    grid: tuple[int, int],
    radius: int,
    alpha: float,
    steps: int,
    backend: str,
) -> Tensor:
    """The operator of :func:`nerve_fast.ops.eager.local_series`."""
    settings = (radius, alpha, steps, backend, wants_grad(values, prior))
    return _local_series(values, prior, *grid, *settings)[0]


def random_walk(
    q: Tensor,
    k: Tensor,
    prior: Tensor,
    head_weights: Tensor | None,
    grid: tuple[int, int],
    config: NerveConfig,
    backend: str,
    route: str,
    max_memory: int | str | None,
    return_steps: tuple[int, ...],
) -> list[Tensor]:
    """The operator of :func:`nerve_fast.ops.eager.walked`: ``P``, then each of ``return_steps``."""
    return _random_walk(
        q,
        k,
        prior,
        head_weights,
        *grid,
        *(getattr(config, name) for name in _CONFIG),
        backend,
        route,
        None if max_memory is None else str(max_memory),
        list(return_steps),
        wants_grad(q, k, prior, head_weights),
    )


_CONFIG = {
    "alpha": "float",
    "beta": "float",
    "steps": "SymInt?",
    "radius": "SymInt",
    "self_affinity": "float",
    "sharpness": "float",
    "normalization": "str",
    "temperature": "float",
    "global_keys": "SymInt?",
    "tolerance": "float",
}
"""The fields of a :class:`NerveConfig` and their types in an operator's schema."""


def _operator(
    name: str,
    tensors: str,
    settings: str,
    call: Callable[..., Sequence[Tensor]],
    shapes: Callable[..., Sequence[Tensor]],
) -> Callable[..., list[Tensor]]:
    """An operator ``(tensors, settings, bool requires_grad) -> Tensor[]`` and its gradients.

    Args:
        name: of the operator.
        tensors, settings: its arguments as a schema has them.
        call: carries it out; takes all arguments, and returns tensors that share no memory.
        shapes: takes all arguments, and returns empty tensors like the results.
    """
    count = len(tensors.split(","))

    def gradients(grads, needed, *arguments):
        return on_a_thread(gradients_of, call, count, grads, needed, arguments)

    operator = torch.library.custom_op(
        f"nerve_fast::{name}",
        call,
        mutates_args=(),
        schema=f"({tensors}, {settings}, bool requires_grad) -> Tensor[]",
    )
    backward_operator = torch.library.custom_op(
        f"nerve_fast::{name}_backward",
        gradients,
        mutates_args=(),
        schema=f"(Tensor[] grads, bool[] needed, {tensors}, {settings}, bool requires_grad)"
        " -> Tensor[]",
    )

    @backward_operator.register_fake
    def _(grads, needed, *arguments):
        return [torch.empty_like(x) for x, need in zip(arguments, needed, strict=False) if need]

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:count])
        ctx.settings = inputs[count:]

    def backward(ctx, grads):
        needed = list(ctx.needs_input_grad[:count])
        arguments = (*ctx.saved_tensors, *ctx.settings)
        found = iter(backward_operator(list(grads), needed, *arguments))
        # torch takes an empty list among the settings for one of tensors, and wants as many back.
        unused: Iterator[Any] = (
            [] if isinstance(x, list | tuple) and not x else None for x in ctx.settings
        )
        return *(next(found) if need else None for need in needed), *unused

    operator.register_fake(shapes)
    operator.register_autograd(backward, setup_context=setup_context)
    return operator


def _per_head(q: Tensor, head_weights: Tensor | None) -> tuple[int, ...]:
    """The dimensions before the tokens: the heads are among them where no weights sum them."""
    return q.shape[:-2] if head_weights is None else q.shape[:-3]


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


_head_entropy = _operator(
    "head_entropy",
    "Tensor q, Tensor k",
    "float? scale, str backend",
    lambda *arguments: [eager.head_entropy(*arguments)],
    lambda q, *_: [q.new_empty(q.shape[:-2], dtype=_wide(q))],
)

_cosine_affinity = _operator(
    "cosine_affinity",
    "Tensor q, Tensor k, Tensor? head_weights",
    "str backend",
    lambda *arguments: [eager.cosine_affinity(*arguments)],
    lambda q, k, head_weights, *_: [
        q.new_empty(*_per_head(q, head_weights), q.shape[-2], q.shape[-2])
    ],
)

_local_affinity = _operator(
    "local_affinity",
    "Tensor q, Tensor k, Tensor? head_weights",
    "SymInt height, SymInt width, SymInt radius, float self_affinity, str backend",
    lambda q, k, head_weights, height, width, *settings: [
        eager.local_affinity(q, k, head_weights, (height, width), *settings).contiguous()
    ],
    lambda q, k, head_weights, height, width, radius, *_: [
        q.new_empty(*_per_head(q, head_weights), q.shape[-2], (2 * radius + 1) ** 2, dtype=_wide(q))
    ],
)

_local_transition = _operator(
    "local_transition",
    "Tensor values",
    "SymInt height, SymInt width, SymInt radius, str normalization, float temperature, str backend",
    lambda values, height, width, radius, normalization, temperature, *settings: [
        eager.local_transition(
            values,
            (height, width),
            radius,
            NerveConfig(normalization=normalization, temperature=temperature),
            *settings,
        ).contiguous()
    ],
    lambda values, *_: [values.new_empty(values.shape, dtype=_wide(values))],
)

_local_matmul = _operator(
    "local_matmul",
    "Tensor values, Tensor x",
    "SymInt height, SymInt width, SymInt radius, str backend",
    lambda values, x, height, width, *settings: [
        eager.local_matmul(values, x, (height, width), *settings).contiguous()
    ],
    lambda values, x, *_: [
        x.new_empty(*torch.broadcast_shapes(values.shape[:-2], x.shape[:-2]), *x.shape[-2:])
    ],
)

_local_series = _operator(
    "local_series",
    "Tensor values, Tensor prior",
    "SymInt height, SymInt width, SymInt radius, float alpha, SymInt steps, str backend",
    lambda values, prior, height, width, *settings: [
        eager.local_series(values, prior, (height, width), *settings).contiguous()
    ],
    lambda values, prior, *_: [
        prior.new_empty(
            *torch.broadcast_shapes(values.shape[:-2], prior.shape[:-2]), *prior.shape[-2:]
        )
    ],
)


def _walk(q, k, prior, head_weights, height, width, *settings) -> list[Tensor]:
    fields, settings = settings[: len(_CONFIG)], settings[len(_CONFIG) :]
    backend, route, max_memory, return_steps, requires_grad = settings
    config = NerveConfig(**dict(zip(_CONFIG, fields, strict=True)))
    return_steps = tuple(return_steps)
    P, at_steps, _ = eager.walked(
        q,
        k,
        prior,
        head_weights,
        (height, width),
        config,
        backend,
        route,
        None,
        max_memory,
        return_steps,
        None,
        requires_grad,
    )
    # P may be one of the others.
    return [P.contiguous(), *(at_steps[t].clone() for t in return_steps)]


_random_walk = _operator(
    "random_walk",
    "Tensor q, Tensor k, Tensor prior, Tensor? head_weights",
    "SymInt height, SymInt width, "
    + ", ".join(f"{kind} {name}" for name, kind in _CONFIG.items())
    + ", str backend, str route, str? max_memory, int[] return_steps",
    _walk,
    lambda q, k, prior, *settings: [
        torch.empty_like(prior, memory_format=torch.contiguous_format)
        for _ in range(1 + len(settings[-2]))
    ],
)
