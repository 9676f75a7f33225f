"""OVDiff (Karazija et al.: Diffusion Models for Open-Vocabulary Segmentation, ECCV 2024)."""

from nerve_fast.priors.ovdiff.prior import OVDiff

__all__ = ["OVDiff"]
