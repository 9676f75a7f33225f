"""The operations in plain PyTorch without an ``N × N`` matrix, for a CPU, MPS and any GPU.

Mirrors :mod:`nerve_fast.reference`, takes what :mod:`nerve_fast.ops` has checked, and computes in
blocks sized to the cache. Accumulates in float32, in float64 for float64 inputs.
"""

from nerve_fast.blocked.affinity import cosine_affinity, local_affinity
from nerve_fast.blocked.entropy import head_entropy
from nerve_fast.blocked.stencil import matmul as local_matmul
from nerve_fast.blocked.stencil import power_series as local_series
from nerve_fast.blocked.stencil import transition as local_transition
from nerve_fast.blocked.walk import random_walk

__all__ = [
    "cosine_affinity",
    "head_entropy",
    "local_affinity",
    "local_matmul",
    "local_series",
    "local_transition",
    "random_walk",
]
