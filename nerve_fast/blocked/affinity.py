"""The affinity of all tokens, from packed heads."""

from torch import Tensor

from nerve_fast.blocked.packing import pack
from nerve_fast.blocked.precision import product_dtype


def cosine_affinity(q: Tensor, k: Tensor, head_weights: Tensor | None = None) -> Tensor:
    """As :func:`nerve_fast.reference.cosine_affinity`, the sum over heads inside the product."""
    if head_weights is None:
        # One head each: the packing normalises and changes nothing else.
        q, k = q[..., None, :, :], k[..., None, :, :]
        head_weights = q.new_ones(q.shape[:-2])
    dtype = product_dtype(q.dtype, q.device)
    packed_q, packed_k = (packed.to(dtype) for packed in pack(q, k, head_weights))
    return packed_q @ packed_k.mT
