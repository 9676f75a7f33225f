"""Head uncertainty and the head weights it gives."""

import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from nerve_fast import reference
from nerve_fast.dispatch import wants_grad
from nerve_fast.errors import quoted
from nerve_fast.ops import eager, library
from nerve_fast.ops.checks import check_float_tensor, check_qk, check_real
from nerve_fast.shares import Share
from nerve_fast.weights import remember


def head_entropy(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    max_rows: int | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Mean Shannon entropy of the rows of each head's attention map (NERVE, slides 4.3).

    .. math:: H^{(h)} = \frac{1}{N} \sum_i -\sum_j p_{ij} \log p_{ij}, \quad
              p = \mathrm{softmax}(\mathrm{scale} \cdot q k^\top)

    Args:
        q, k: ``(…, H, N, D)``, any floating dtype.
        scale: multiplies the logits; ``None`` is ``1/√D``.
        max_rows: of more rows than this the mean is estimated from so many, spread evenly and the
            same in every run: its standard error is that of the rows over ``√max_rows``. ``None``
            takes all: exact, ``N²`` operations.
        backend: ``auto``, ``reference``, ``blocked`` or ``triton``.

    Returns:
        ``(…, H)`` in nats, float32 (float64 for float64 inputs).

    Raises:
        ValueError, TypeError: an argument is not as described; the message says how.
    """
    check_qk(q, k)
    if scale is not None:
        scale = check_real("scale", scale)
    if max_rows is not None:
        if not isinstance(max_rows, numbers.Integral) or isinstance(max_rows, bool):
            raise TypeError(f"max_rows is {quoted(max_rows)}; expected a whole number or None")
        if max_rows < 1:
            raise ValueError(f"max_rows is {quoted(max_rows)}; expected 1 or more, or None for all")
        if max_rows < q.shape[-2]:
            q = q[..., spread(q.shape[-2], max_rows).to(q.device), :]
    if library.compiled():
        return library.head_entropy(q, k, scale, backend)
    return eager.head_entropy(q, k, scale, backend, wants_grad(q, k))


GROUPS = 16
"""Groups of sampled rows, from whose means the standard error follows; it is itself known to 18 %,
as ``1 / √(2 · (16 − 1))``."""


class SampledEntropy(NamedTuple):
    """Head entropies, of all rows or of some.

    Attributes:
        mean: ``(…, H)`` in nats.
        error: its standard error, ``(…, H)`` in nats; ``None`` where all rows were taken.
        rows: how many were taken.
    """

    mean: Tensor
    error: Tensor | None
    rows: int


def sampled_entropy(
    q: Tensor,
    k: Tensor,
    max_rows: int | None,
    *,
    backend: str = "auto",
    share: Share | None = None,
) -> SampledEntropy:
    r""":func:`head_entropy` of at most ``max_rows`` rows, and how far that may be off.

    The rows are those of :func:`head_entropy`, a multiple of 16 of them, of which each 16
    neighbours are dealt to 16 groups by a seed. The groups' means :math:`H_g` give the standard
    error of the mean of all, more rather than less where neighbours are alike,

    .. math:: \sqrt{\Bigl(1 - \frac{n}{N}\Bigr) \frac{1}{16 \cdot 15} \sum_g (H_g - \bar H)^2}.

    Args:
        q, k: ``(…, H, N, D)``.
        max_rows: at least 32; ``None`` takes all.
        backend: who computes them.
        share: which tokens these are, where processes share them; ``None``: all of them.
    """
    check_qk(q, k)
    share = share or Share((1, q.shape[-2]))
    if max_rows is None or max_rows >= share.tokens:
        return SampledEntropy(eager.entropy_of_shares(q, k, backend, share), None, share.tokens)
    rows = max_rows // GROUPS * GROUPS
    drawn = spread_in_groups(share.tokens, rows).to(q.device)
    # (16, …, H, rows / 16, D).
    groups = share.picked(q, drawn.flatten()).unflatten(-2, (-1, GROUPS)).movedim(-2, 0)
    means = eager.grouped_entropy(groups, k, backend, share)
    among = means.var(0) / GROUPS * (1 - rows / share.tokens)
    return SampledEntropy(means.mean(0), among.sqrt(), rows)


def spread_in_groups(tokens: int, rows: int, seed: int = 0) -> Tensor:
    """:func:`spread`, ``(rows / 16, 16)``, each column a group that is spread itself.

    Every sixteenth row would be of one column of the grid where that is as wide as their distance.
    """
    drawn = spread(tokens, rows, seed).view(-1, GROUPS)
    order = torch.rand(drawn.shape, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    return drawn.gather(1, order)


def spread(tokens: int, rows: int, seed: int = 0) -> Tensor:
    """``rows`` of ``tokens``: one of each ``rows``-th part, drawn so that no column is favoured."""
    draws = torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((torch.arange(rows) + draws) * (tokens / rows)).long().clamp(max=tokens - 1)


def entropy_weights(entropy: Tensor, sharpness: float) -> Tensor:
    r"""Weight of each head, from its entropy (NERVE, slides 4.3).

    .. math:: w_h = \frac{\exp(-c H^{(h)})}{\sum_{h'} \exp(-c H^{(h')})}

    Args:
        entropy: ``(…, H)`` in nats, as :func:`head_entropy` gives it.
        sharpness: ``c``, 0 or more; 0 is the plain mean over heads.

    Returns:
        ``(…, H)``, summing to 1, float32 (float64 for float64 inputs). Operations take them as they
        are, without waiting for the device to look at them. If they were made in
        :class:`torch.inference_mode`, change a copy of them, not the tensor itself.

    Raises:
        ValueError, TypeError: an argument is not as described; the message says how.
    """
    check_float_tensor("entropy", entropy, "(…, H)", 1)
    sharpness = check_real("sharpness", sharpness, least=0)
    weights = reference.entropy_weights(entropy, sharpness)
    return weights if torch.compiler.is_compiling() else remember(weights, 1.0)
