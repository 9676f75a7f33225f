"""The three networks whose features OVDiff compares, and how each sees an image."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.dino import DINOBackbone
from nerve_fast.backbones.text_to_image import TextToImage
from nerve_fast.priors.layers import on_grid, run
from nerve_fast.priors.registry import ACTIVATIONS

LAYER = -2
"""Of CLIP, whose keys are taken."""

LONGEST = 800 / 448
"""Of what DINO sees, in short sides."""


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels ``(3, H, W)`` bilinear at ``size = (h, w)``, without averaging."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return interpolate(pixels[None], size, mode="bilinear", align_corners=False)[0]


class DiffusionFeatures:
    """Queries of Stable Diffusion's cross-attentions; the image is squashed to its own square."""

    name, patch = "diffusion", 1

    def __init__(self, diffusion: TextToImage):
        self.diffusion = diffusion

    def fitted(self, pixels: Tensor, side: int) -> Tensor:
        """A crop ``(3, H, W)`` as the network sees it; ``side`` is the short side of images."""
        return resized(pixels, (self.diffusion.size,) * 2)

    def features(self, pixels: Tensor, sampling: torch.Generator, noise: torch.Generator) -> Tensor:
        """``(h, w, C)`` float32 of what :meth:`fitted` gave."""
        return self.diffusion.features(pixels, sampling, noise)

    def memory(self, height: int, width: int, side: int) -> int:
        """Bytes that an image of this size takes on its way."""
        return self.diffusion.memory()


class CLIPKeys:
    """Keys of CLIP's last layer but one, of the image squashed to a square.

    Pixels are normalised by ImageNet's mean and deviation, as in the public code.
    """

    name = "clip"

    def __init__(self, clip: CLIPBackbone):
        self.clip = clip
        self.patch = clip.patch

    def fitted(self, pixels: Tensor, side: int) -> Tensor:
        """See :meth:`DiffusionFeatures.fitted`."""
        return resized(pixels, (side, side))

    def features(self, pixels: Tensor, sampling: torch.Generator, noise: torch.Generator) -> Tensor:
        """See :meth:`DiffusionFeatures.features`."""
        mean, std = (
            torch.tensor(values).view(3, 1, 1)
            for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        kept = []

        def read_out(layers, x, grid, pixels):
            layer = layers[LAYER]
            x = run(layers[:LAYER], x)
            kept.append(on_grid(layer.self_attn.k_proj(layer.layer_norm1(x)), grid)[0])
            return on_grid(x, grid)

        seen = ((pixels - mean) / std).to(self.clip.device, self.clip.model.dtype)
        self.clip.projected(seen[None], read_out, position_offset=0.1)
        return kept[0].float()

    def memory(self, height: int, width: int, side: int) -> int:
        """See :meth:`DiffusionFeatures.memory`."""
        tokens = 1 + (side // self.clip.patch) ** 2
        hidden = self.clip.model.config.vision_config.hidden_size
        return ACTIVATIONS * tokens * hidden * self.clip.model.dtype.itemsize


class DINOKeys:
    """Keys of DINO's last layer, of the image as it is."""

    name = "dino"

    def __init__(self, dino: DINOBackbone):
        self.dino = dino
        self.patch = dino.patch

    def fitted(self, pixels: Tensor, side: int) -> Tensor:
        """See :meth:`DiffusionFeatures.fitted`; a very long image is made smaller."""
        height, width = pixels.shape[-2:]
        most = int(LONGEST * side)
        if max(height, width) > most:
            short = int(most * min(height, width) / max(height, width))
            size = (short, most) if height < width else (most, short)
            return resized(pixels, size)
        return pixels

    def features(self, pixels: Tensor, sampling: torch.Generator, noise: torch.Generator) -> Tensor:
        """See :meth:`DiffusionFeatures.features`; what is left beyond whole patches is not seen."""
        dino, patch = self.dino, self.dino.patch
        grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        seen = (pixels - dino.image_mean) / dino.image_std
        seen = seen[:, : grid[0] * patch, : grid[1] * patch]
        return dino.projected(seen[None])[1][0].flatten(1).unflatten(0, grid).float()

    def memory(self, height: int, width: int, side: int) -> int:
        """See :meth:`DiffusionFeatures.memory`."""
        return self.dino.tile_memory((height, width))


Extractor = DiffusionFeatures | CLIPKeys | DINOKeys
