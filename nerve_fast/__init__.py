"""NERVE: training-free open-vocabulary segmentation by a random walk on diffusion attention."""

from nerve_fast.config import NerveConfig
from nerve_fast.dispatch import Plan, plan, use_backend
from nerve_fast.errors import InputError
from nerve_fast.ops import (
    LocalAffinity,
    cosine_affinity,
    entropy_weights,
    head_entropy,
    local_affinity,
    random_walk,
)

__all__ = [
    "InputError",
    "LocalAffinity",
    "NerveConfig",
    "NervePipeline",
    "Plan",
    "PriorConfig",
    "SegmentationOutput",
    "cosine_affinity",
    "entropy_weights",
    "head_entropy",
    "local_affinity",
    "plan",
    "random_walk",
    "use_backend",
]


__version__ = "0.2.0.dev0"


def __dir__():
    return [*globals(), "NervePipeline", "PriorConfig", "SegmentationOutput"]


def __getattr__(name):
    # The operations need torch alone; transformers and diffusers take seconds to import.
    if name in ("NervePipeline", "SegmentationOutput"):
        from nerve_fast.pipeline import pipeline

        return getattr(pipeline, name)
    if name == "PriorConfig":
        from nerve_fast.priors import PriorConfig

        return PriorConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
