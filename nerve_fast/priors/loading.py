"""A prior of a name with all its networks."""

import torch

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.priors.config import PriorConfig
from nerve_fast.priors.patchwise import CLIPPrior
from nerve_fast.priors.prior import Prior
from nerve_fast.priors.registry import ENTRIES, System


def load_prior(
    config: PriorConfig, clip: str, *, device: torch.device, dtype: torch.dtype
) -> Prior:
    """Load a prior.

    Args:
        config: which one, its settings and its further networks.
        clip: hub id or folder of its network of images and words; which kinds it takes depends on
            the prior.
        device, dtype: of the networks.

    Raises:
        InputError: a network is not named, not available or of another kind.
    """
    entry = ENTRIES[config.name]
    if isinstance(entry, System):
        return entry.load(config, clip, device=device, dtype=dtype)
    return CLIPPrior(CLIPBackbone.from_pretrained(clip, device=device, dtype=dtype), config)
