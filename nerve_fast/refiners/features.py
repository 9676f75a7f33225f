"""What the refiners on Stable Diffusion see of an image, each of them the same."""

import torch
from PIL import Image

from nerve_fast.backbones.diffusion import DiffusionBackbone, DiffusionFeatures
from nerve_fast.errors import InputError
from nerve_fast.imaging.images import model_size
from nerve_fast.imaging.tiling import Tiling


def features_of(
    diffusion: DiffusionBackbone, image: Image.Image, *, seed: int = 0
) -> DiffusionFeatures:
    """Queries and keys of one image, as the pipeline's defaults take them.

    The short side becomes the size that the UNet was trained at and the shape is kept; an image
    longer than 1.5 times that goes through the networks in tiles.

    Args:
        image: RGB, of any size.
        seed: of the noise, drawn on the CPU.

    Returns:
        ``q, k (1, H, N, D)`` in the model's dtype, and their grid.

    Raises:
        InputError: the UNet gave values that are not finite.
    """
    size = model_size(image.size, diffusion.native_size, diffusion.multiple)
    tile = diffusion.native_size * 3 // 2
    features = diffusion.queries_and_keys(
        [image],
        size,
        [torch.Generator().manual_seed(seed)],
        tiling=Tiling.of(size[::-1], tile, tile // 6, diffusion.multiple),
    )
    for projection in (features.q, features.k):
        if not torch.isfinite(projection).all():
            raise InputError(
                f"the UNet gave values that are not finite in {projection.dtype}: take another "
                "dtype (torch.bfloat16 or torch.float32), or check the model's weights"
            )
    return features
