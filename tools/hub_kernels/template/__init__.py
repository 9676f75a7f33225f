"""The graph stage of NERVE in Triton: affinities, head entropies and the random walk on them."""

from . import layers, reference
from .config import NerveConfig
from .registered import cosine_affinity, head_entropy, local_affinity, random_walk

__all__ = [
    "NerveConfig",
    "cosine_affinity",
    "head_entropy",
    "layers",
    "local_affinity",
    "random_walk",
    "reference",
]
