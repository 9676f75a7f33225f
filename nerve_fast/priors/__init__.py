"""How CLIP's patches become the prior ``G``: one file a method, chosen by name."""

from nerve_fast.priors.clearclip import clearclip
from nerve_fast.priors.clip import clip
from nerve_fast.priors.cliper import cliper
from nerve_fast.priors.config import READ_OUTS, PriorConfig, read_out_of
from nerve_fast.priors.gem import gem
from nerve_fast.priors.maskclip import maskclip
from nerve_fast.priors.naclip import naclip
from nerve_fast.priors.probabilities import (
    WINDOW_BATCH,
    check_finite,
    label_probabilities,
    probabilities_of,
    similarities,
    to_tokens,
)
from nerve_fast.priors.proxyclip import ProxyCLIP
from nerve_fast.priors.sclip import sclip
from nerve_fast.priors.views import View, view_of

__all__ = [
    "READ_OUTS",
    "WINDOW_BATCH",
    "PriorConfig",
    "ProxyCLIP",
    "View",
    "check_finite",
    "clearclip",
    "clip",
    "cliper",
    "gem",
    "label_probabilities",
    "maskclip",
    "naclip",
    "probabilities_of",
    "read_out_of",
    "sclip",
    "similarities",
    "to_tokens",
    "view_of",
]
