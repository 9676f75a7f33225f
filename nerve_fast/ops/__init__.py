"""The public operations: check the inputs, ask :mod:`nerve_fast.dispatch`, call a backend."""

from nerve_fast.ops.affinity import cosine_affinity, local_affinity
from nerve_fast.ops.entropy import entropy_weights, head_entropy
from nerve_fast.ops.local import LocalAffinity
from nerve_fast.ops.walk import random_walk

__all__ = [
    "LocalAffinity",
    "cosine_affinity",
    "entropy_weights",
    "head_entropy",
    "local_affinity",
    "random_walk",
]
