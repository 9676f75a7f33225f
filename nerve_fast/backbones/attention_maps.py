"""The map of a self-attention, whole, and with less entropy, as iSeg has it.

Sun, Cao, Xie, Khan, Pang: An Iterative Refinement-based Framework, arXiv 2409.03209.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from nerve_fast.errors import InputError
from nerve_fast.utils.tiles import CPU_TILE_BYTES, GPU_TILE_BYTES, spans

MAX_TOKENS = 16_384
"""More are refused: the map of so many takes a gigabyte. 512 × 2048 pixels have them."""


def attention_map(q: Tensor, k: Tensor) -> Tensor:
    """The mean over heads of ``softmax(q kᵀ / √D)``: ``(H, N, D)`` to ``(N, N)`` float32.

    Raises:
        InputError: there are more tokens than :data:`MAX_TOKENS`.
    """
    heads, tokens, head_dim = q.shape
    if tokens > MAX_TOKENS:
        raise InputError(
            f"the image has {tokens} tokens, and iSeg stores their map, {tokens} × {tokens}; "
            f"expected at most {MAX_TOKENS}: make the image smaller or less elongated"
        )
    keys = k.float().mT
    attention = torch.zeros(tokens, tokens, device=q.device)
    for rows in _row_tiles(attention):
        for head in range(heads):
            logits = q[head, rows].float() @ keys[head] / math.sqrt(head_dim)
            attention[rows] += logits.softmax(-1)
    return attention.div_(heads)


def reduce_entropy_(attention: Tensor, step_size: float) -> Tensor:
    r"""One step of gradient descent on the entropy of a map, in its own memory.

    .. math:: \tilde a_{ij} = a_{ij} / \max_i a_{ij}, \quad
              a'_{ij} \propto \max(0,\; \tilde a_{ij} + \lambda \log_{10}(e \, \tilde a_{ij}))

    The gradient of :math:`-a \ln a` is :math:`-(1 + \ln a)`; the decimal logarithm is that of the
    authors' code. Rows are made to sum to 1 in the end; one that nothing is left of keeps its
    label, where the authors divide by 0.

    Args:
        attention: ``(N, N)``, non-negative, rows from queries to keys; overwritten.
        step_size: λ.

    Returns:
        ``attention``.
    """
    largest = attention.amax(0)
    for rows in _row_tiles(attention):
        a = attention[rows] / largest
        a = torch.where(a > 0, a + step_size * torch.log10(math.e * a), 0).clamp(min=0)
        total = a.sum(-1, keepdim=True)
        attention[rows] = a / total.where(total > 0, 1)
        empty = (total[:, 0] == 0).nonzero()[:, 0] + rows.start
        attention[empty, empty] = 1
    return attention


def _row_tiles(attention: Tensor) -> Iterator[slice]:
    """Rows that are worked on at a time."""
    size = CPU_TILE_BYTES if attention.device.type == "cpu" else GPU_TILE_BYTES
    return spans(len(attention), max(size // (4 * len(attention)), 1))
