"""Checks of what callers pass in, with messages that say what came and what was expected."""

import itertools
import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from nerve_fast.config import MOST
from nerve_fast.errors import InputError, quoted
from nerve_fast.normalization import Normalization
from nerve_fast.numerics import is_finite, upcast
from nerve_fast.weights import is_capturing, known_sum, remember


def check_float_tensor(name: str, x: Tensor, shape: str, ndim: int) -> None:
    """``x`` is a floating tensor of at least ``ndim`` dimensions, the last ``ndim`` not empty."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; expected a torch.Tensor {shape}")
    if x.layout != torch.strided:
        raise TypeError(f"{name} has layout {x.layout}; expected a dense tensor: .to_dense()")
    if not x.is_floating_point():
        raise TypeError(
            f"{name} has dtype {x.dtype}; expected a floating dtype: convert it with .float()"
        )
    if x.ndim < ndim:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {shape}")
    if 0 in x.shape:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; expected {shape} with no dimension of size 0"
        )


def check_qk(q: Tensor, k: Tensor) -> None:
    """``q`` and ``k`` are two tensors ``(…, H, N, D)`` alike in shape, dtype and device."""
    check_float_tensor("q", q, "(…, H, N, D)", 3)
    check_float_tensor("k", k, "(…, H, N, D)", 3)
    for what in ("shape", "dtype", "device"):
        mine, other = getattr(k, what), getattr(q, what)
        if mine != other:
            if what == "shape":
                mine, other = tuple(mine), tuple(other)
            raise ValueError(f"k has {what} {mine}; expected that of q, {other}")


def check_grid(grid: tuple[int, int], tokens: int | None) -> tuple[int, int]:
    """The grid as two ints ``(h, w)`` with ``h · w = tokens``, or of any number for ``None``."""
    try:
        h, w = grid
    except (TypeError, ValueError):
        raise TypeError(f"grid is {quoted(grid)}; expected (height, width) in tokens") from None
    for side in (h, w):
        if not isinstance(side, numbers.Integral) or isinstance(side, bool):
            raise TypeError(f"grid is {quoted(grid)}; expected two whole numbers (height, width)")
    if tokens is None:
        tokens = h * w
    if h < 1 or w < 1 or h * w != tokens:
        raise ValueError(
            f"grid is {h} × {w} = {h * w} tokens; expected height · width = N = {tokens}, the "
            "second to last dimension of q"
        )
    return int(h), int(w)


def check_head_weights(head_weights: Tensor, q: Tensor) -> None:
    """``head_weights`` is ``(…, H)`` on the device of ``q``."""
    check_float_tensor("head_weights", head_weights, "(…, H)", 1)
    if head_weights.shape != q.shape[:-2]:
        raise ValueError(
            f"head_weights has shape {tuple(head_weights.shape)}; expected "
            f"{tuple(q.shape[:-2])}, one weight for each head of q"
        )
    check_same_device("head_weights", head_weights, q)


def check_values(**tensors: Tensor | None) -> None:
    """All elements are finite, and those of ``head_weights`` non-negative, by one look at them.

    Nothing can be read while a CUDA graph is recorded; nothing is checked then.

    Args:
        tensors: by the arguments' names, ``(…, N, K)`` but for ``head_weights``, ``(…, H)``.

    Raises:
        InputError: naming the argument.
    """
    present = {name: x.detach() for name, x in tensors.items() if x is not None}
    given = tensors.get("head_weights")
    weights = present.pop("head_weights", None)
    if given is not None and known_sum(given) is not None:
        # Those of `entropy_weights` are known to be valid.
        weights = None
    looked_at = [*present.values(), *([] if weights is None else [weights])]
    if not looked_at or is_capturing(looked_at[0].device):
        return
    # NaN and infinity stay in a sum, which is one pass; extremes would be two.
    signs = [x.sum(-2).isfinite().all() for x in present.values()]
    if weights is not None:
        signs += [weights.amin(), weights.amax(), upcast(weights).sum(-1).amax()]
    dtype = torch.float32 if weights is None else upcast(weights).dtype
    found = torch.stack([x.to(dtype) for x in signs]).tolist()
    for (name, x), finite in zip(present.items(), found, strict=False):
        if not finite:
            # In 16 bits a sum of finite numbers may be infinite.
            _refuse_infinite(name, x)
    if weights is not None and given is not None:
        least, most, largest_sum = found[-3:]
        if not (least >= 0 and math.isfinite(most)):
            raise InputError(
                f"head_weights holds {weights.tolist()}; expected finite numbers, 0 or more"
            )
        if not given.is_inference():
            # So that nobody waits for the device again.
            remember(given, largest_sum)


def _refuse_infinite(name: str, x: Tensor) -> None:
    wrong = int((~x.isfinite()).sum())
    if wrong:
        raise InputError(
            f"{name} holds NaN or infinity in {wrong} of {x.numel()} elements; expected finite "
            "numbers"
        )


def check_logits(q: Tensor, k: Tensor, scale: float | None, dtype: torch.dtype) -> None:
    """The logits of attention, from which entropies come, stay within the range of ``dtype``.

    Nothing can be read while a CUDA graph is recorded; nothing is checked then.

    Raises:
        InputError: they may leave it, or an element is not finite.
    """
    if is_capturing(q.device):
        return
    tensors = {"q": q.detach(), "k": k.detach()}
    # Extremes pass NaN and infinity on, without a copy of the tensor.
    extremes = [torch.maximum(x.amax(), -x.amin()) for x in tensors.values()]
    magnitudes = torch.stack([upcast(x) for x in extremes]).tolist()
    for (name, x), magnitude in zip(tensors.items(), magnitudes, strict=True):
        if not math.isfinite(magnitude):
            _refuse_infinite(name, x)
    scale = q.shape[-1] ** -0.5 if scale is None else abs(scale)
    largest = math.prod(magnitudes) * q.shape[-1] * max(scale, 1)
    if not largest < torch.finfo(dtype).max / 16:
        raise InputError(
            f"q reaches {magnitudes[0]:.3g} and k {magnitudes[1]:.3g}; expected less, as the "
            f"entropy's logits q · k leave the range of {str(dtype).removeprefix('torch.')}: scale "
            "q and k down, or pass head_weights or sharpness=0 to a walk"
        )


def check_weight_sum(head_weights: Tensor | None, rule: Normalization) -> None:
    """Numerators that cannot be negative for a cosine are not for a sum of weighted ones either.

    Raises:
        InputError: the weights sum to more than 1, and the rule's numerators would be negative.
    """
    if head_weights is None or not rule.linear or rule.signed:
        return
    if is_capturing(head_weights.device):
        return
    largest = known_sum(head_weights)
    if largest is None:
        largest = upcast(head_weights.detach()).sum(-1).max().item()
    rounding = head_weights.shape[-1] * torch.finfo(head_weights.dtype).eps + 1e-5
    if rule.scale * largest > rule.offset + rule.scale * rounding:
        raise InputError(
            f"head_weights sum to {largest:.6g}; expected at most {rule.offset / rule.scale:g} "
            f"with normalization {rule.name!r}, whose numerators would be negative: divide the "
            "weights by their sum, or take another normalization"
        )


def check_prior(prior: Tensor, q: Tensor) -> None:
    """``prior`` is ``(…, N, K)`` with the batch and the tokens of ``q``."""
    check_float_tensor("prior", prior, "(…, N, K)", 2)
    expected = (*q.shape[:-3], q.shape[-2])
    if prior.shape[:-1] != expected:
        raise ValueError(
            f"prior has shape {tuple(prior.shape)}; expected "
            f"({', '.join(map(str, expected))}, K), as q has shape {tuple(q.shape)}"
        )
    check_same_device("prior", prior, q)


def check_same_device(name: str, x: Tensor, q: Tensor) -> None:
    """``x`` lies on the device of ``q``."""
    if x.device != q.device:
        raise ValueError(f"{name} is on {x.device}; expected it on {q.device}, where q is")


def check_real(name: str, value: float, least: float | None = None) -> float:
    """``value`` as a finite float, at least ``least`` where that is given."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {quoted(value)}; expected {_finite_number(least)}")
    if not is_finite(value) or (least is not None and value < least):
        raise ValueError(f"{name} is {quoted(value)}; expected {_finite_number(least)}")
    return float(value)


def _finite_number(least: float | None) -> str:
    return "a finite number" + ("" if least is None else f", {least:g} or more")


def check_return_steps(return_steps: Sequence[int]) -> tuple[int, ...]:
    """The numbers of steps as ints, each once, in the order given."""
    try:
        # Larger ones are refused before there are many.
        return_steps = tuple(itertools.islice(return_steps, MOST + 2))
    except TypeError:
        raise TypeError(
            f"return_steps is {quoted(return_steps)}; expected a sequence of whole numbers such as "
            "(1, 5)"
        ) from None
    for t in return_steps:
        if not isinstance(t, numbers.Integral) or isinstance(t, bool):
            raise TypeError(f"return_steps holds {quoted(t)}; expected whole numbers, 0 or more")
        if t < 0:
            raise InputError(f"return_steps holds {quoted(t)}; expected whole numbers, 0 or more")
        if t > MOST:
            raise InputError(f"return_steps holds a number above {MOST}; expected at most that")
    return tuple(dict.fromkeys(int(t) for t in return_steps))
