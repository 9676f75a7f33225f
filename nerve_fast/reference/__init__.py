"""The definition of NERVE in plain dense PyTorch, in the slides' notation.

Nothing here is clever: every other backend is judged against these functions in float64. They take
tensors that :mod:`nerve_fast.ops` has checked, compute in float32 or, for float64 inputs, in
float64, allow any leading batch dimensions, and are differentiable.

``q, k (…, H, N, D)`` are queries and keys of ``H`` heads on a grid of ``h × w`` tokens, row-major,
``N = h·w``; ``A (…, N, N)`` is an affinity, ``S (…, N, N)`` a transition matrix, ``G (…, N, K)``
the prior over ``K`` labels.
"""

from nerve_fast.reference.affinity import cosine_affinity, local_affinity
from nerve_fast.reference.entropy import entropy_weights, head_entropy
from nerve_fast.reference.local import local_matmul, local_series, local_transition
from nerve_fast.reference.walk import random_walk

__all__ = [
    "cosine_affinity",
    "entropy_weights",
    "head_entropy",
    "local_affinity",
    "local_matmul",
    "local_series",
    "local_transition",
    "random_walk",
]
