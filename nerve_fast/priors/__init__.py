"""How CLIP's patches become the prior ``G``: one file a method, chosen by name."""

from nerve_fast.priors.maskclip import maskclip
from nerve_fast.priors.naclip import naclip
from nerve_fast.priors.probabilities import READ_OUTS, PriorConfig, label_probabilities, to_tokens

__all__ = [
    "READ_OUTS",
    "PriorConfig",
    "label_probabilities",
    "maskclip",
    "naclip",
    "to_tokens",
]
