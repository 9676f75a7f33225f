"""This project's own: the random walk on the UNet's queries and keys (NERVE, WACV 2026)."""

import dataclasses

import torch
from PIL import Image
from torch import Tensor

from nerve_fast.backbones.diffusion import DiffusionBackbone, DiffusionFeatures
from nerve_fast.config import NerveConfig
from nerve_fast.imaging.resampling import as_distribution, as_maps
from nerve_fast.ops import entropy_weights, random_walk
from nerve_fast.priors import to_tokens
from nerve_fast.refiners.checks import check_maps
from nerve_fast.refiners.features import features_of


@dataclasses.dataclass(frozen=True, eq=False)
class Walk:
    """The pipeline's second half as a refiner, :func:`walk`, with no budget of tokens.

    Args:
        diffusion: says which tokens belong together.
        config: settings of the graph stage; ``None`` is ``NerveConfig()``.
        backend: who carries it out: ``auto``, ``reference``, ``blocked``, ``triton``.
        seed: of the noise.
    """

    diffusion: DiffusionBackbone
    config: NerveConfig | None = None
    backend: str = "auto"
    seed: int = 0

    def __call__(self, image: Image.Image, probabilities: Tensor) -> Tensor:
        """Probabilities ``(K, h, w)`` to those of the UNet's tokens."""
        check_maps(probabilities)
        features = features_of(self.diffusion, image, seed=self.seed)
        return walk(features, probabilities, self.config, backend=self.backend)


@torch.no_grad()
def walk(
    features: DiffusionFeatures,
    probabilities: Tensor,
    config: NerveConfig | None = None,
    *,
    entropy: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """``P_L`` of one image, as the pipeline has it.

    Args:
        features: of the image, ``q, k (1, H, N, D)``.
        probabilities: ``(K, h', w')``, resampled to the tokens first.
        config: settings; ``None`` is ``NerveConfig()``.
        entropy: ``(1, H)`` of :func:`nerve_fast.head_entropy`, for those who walk on the same
            features several times; ``None`` computes it, of all rows.
        backend: as for :class:`Walk`.

    Returns:
        ``(K, h, w)`` float32 on the grid of the features, where the probabilities are.
    """
    check_maps(probabilities)
    config = config or NerveConfig()
    q, k, grid = features.q, features.k, features.grid
    prior = to_tokens(probabilities[None].to(q.device), grid)
    weights = None if entropy is None else entropy_weights(entropy, config.sharpness)
    walked = random_walk(q, k, prior, grid, config, head_weights=weights, backend=backend)
    return as_maps(as_distribution(walked[0]), grid).to(probabilities.device)
