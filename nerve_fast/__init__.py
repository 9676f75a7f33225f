"""NERVE: training-free open-vocabulary segmentation by a random walk on diffusion attention."""

import importlib
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    # At run time they are imported when they are asked for, see __getattr__.
    from nerve_fast import evaluation
    from nerve_fast.pipeline import ImageFeatures, NervePipeline, SegmentationOutput
    from nerve_fast.priors import Prior, PriorConfig

__all__ = [
    "ImageFeatures",
    "InputError",
    "LocalAffinity",
    "NerveConfig",
    "NervePipeline",
    "Plan",
    "Prior",
    "PriorConfig",
    "SegmentationOutput",
    "cosine_affinity",
    "entropy_weights",
    "evaluation",
    "head_entropy",
    "local_affinity",
    "plan",
    "random_walk",
    "use_backend",
]


__version__ = "0.2.0.dev0"


_LAZY = {
    "ImageFeatures": "nerve_fast.pipeline",
    "NervePipeline": "nerve_fast.pipeline",
    "SegmentationOutput": "nerve_fast.pipeline",
    "Prior": "nerve_fast.priors",
    "PriorConfig": "nerve_fast.priors",
}
"""The operations need torch alone; transformers and diffusers take seconds to import."""


def __dir__():
    return [*globals(), *_LAZY, "evaluation"]


def __getattr__(name):
    if name == "evaluation":
        return importlib.import_module("nerve_fast.evaluation")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
