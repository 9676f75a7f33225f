"""How CLIP's patches become the prior ``G``: one file a method, chosen by name."""

from nerve_fast.priors.maskclip import maskclip
from nerve_fast.priors.naclip import naclip
from nerve_fast.priors.probabilities import (
    READ_OUTS,
    WINDOW_BATCH,
    PriorConfig,
    View,
    label_probabilities,
    to_tokens,
    view_of,
)

__all__ = [
    "READ_OUTS",
    "WINDOW_BATCH",
    "PriorConfig",
    "View",
    "label_probabilities",
    "maskclip",
    "naclip",
    "to_tokens",
    "view_of",
]
