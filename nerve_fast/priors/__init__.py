"""How images and labels become the prior ``G``: one file a method, chosen by name."""

# The order of these imports is that of the names in messages.
# isort: off
from nerve_fast.priors.clip import clip
from nerve_fast.priors.maskclip import maskclip
from nerve_fast.priors.sclip import sclip
from nerve_fast.priors.naclip import naclip
from nerve_fast.priors.clearclip import clearclip
from nerve_fast.priors.gem import gem
from nerve_fast.priors.cliper import CLIPer
from nerve_fast.priors.proxyclip import ProxyCLIP
from nerve_fast.priors.siglip import SigLIP
from nerve_fast.priors.groupvit import GroupViT
from nerve_fast.priors.clipdiy import CLIPDIY
from nerve_fast.priors.pixelclip import PixelCLIP
from nerve_fast.priors.car import CaR
from nerve_fast.priors.ovdiff import OVDiff
from nerve_fast.priors.iseg import ISegPrior

# isort: on
from nerve_fast.priors.config import PriorConfig
from nerve_fast.priors.loading import load_prior
from nerve_fast.priors.patchwise import CLIPPrior, check_finite, read_out_of
from nerve_fast.priors.prior import Prior
from nerve_fast.priors.probabilities import as_distribution, best_words
from nerve_fast.priors.registry import ENTRIES, METHODS
from nerve_fast.priors.views import View, view_of

__all__ = [
    "CLIPDIY",
    "ENTRIES",
    "METHODS",
    "CLIPPrior",
    "CLIPer",
    "CaR",
    "GroupViT",
    "ISegPrior",
    "OVDiff",
    "PixelCLIP",
    "Prior",
    "PriorConfig",
    "ProxyCLIP",
    "SigLIP",
    "View",
    "as_distribution",
    "best_words",
    "check_finite",
    "clearclip",
    "clip",
    "gem",
    "load_prior",
    "maskclip",
    "naclip",
    "read_out_of",
    "sclip",
    "view_of",
]
