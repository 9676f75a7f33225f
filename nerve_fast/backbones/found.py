"""FOUND's saliency (Siméoni et al.: Unsupervised Object Localization, CVPR 2023) on DINO's keys."""

import os

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from nerve_fast.backbones.dino import DINOBackbone
from nerve_fast.backbones.loading import guarded
from nerve_fast.errors import InputError
from nerve_fast.imaging.images import to_tensor
from nerve_fast.utils.provenance import digest

DEFAULT_DINO = "facebook/dino-vits8"
"""The DINO that FOUND's weights were trained on."""


class Saliency:
    """How much each pixel is of an object: a linear map of the keys of DINO's last layer.

    Args:
        dino: gives the keys.
        weight: ``(C,)``, of all heads one after another.
        bias: a number.

    Raises:
        ValueError: DINO's keys are not of the weight's length.
    """

    def __init__(self, dino: DINOBackbone, weight: Tensor, bias: float):
        if weight.shape != (dino.heads * dino.head_dim,):
            raise ValueError(
                f"its weights are for keys of {weight.numel()} channels, and DINO's have "
                f"{dino.heads * dino.head_dim}"
            )
        self.dino = dino
        self.weight = weight.float().to(dino.device)
        self.bias = bias

    @classmethod
    def from_file(cls, path: str, dino: DINOBackbone) -> "Saliency":
        """Load FOUND's ``decoder_weights.pt``: a 1 × 1 convolution under the name ``decoder``.

        Raises:
            InputError: the file is not there, holds something else, or does not fit DINO.
        """
        if not os.path.isfile(path):
            raise InputError(f"prior network found is {path!r}: no such file")
        with guarded("FOUND", path):
            decoder = torch.load(path, map_location="cpu", weights_only=True)["decoder"]
            return cls(dino, decoder["weight"].flatten(), decoder["bias"].item())

    @property
    def identity(self) -> str:
        """A digest of the weights, and what identifies DINO."""
        weights = digest([self.weight.tolist(), self.bias])
        return f"FOUND {weights} on {self.dino.identity}"

    def memory(self, size: tuple[int, int]) -> int:
        """Bytes that an image of ``size = (width, height)`` takes on its way."""
        patch = self.dino.patch
        return self.dino.tile_memory((size[1] + patch, size[0] + patch))

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> Tensor:
        """The saliency of an RGB image at its own size: ``(H, W)`` float32 from 0 to 1.

        The normalised image is padded with zeros, on the right and below, to whole patches.
        """
        dino, patch = self.dino, self.dino.patch
        pixels = (to_tensor(image) - dino.image_mean) / dino.image_std
        pixels = pad(pixels, (0, -image.width % patch, 0, -image.height % patch))
        grid = (pixels.shape[1] // patch, pixels.shape[2] // patch)
        keys = dino.projected(pixels[None])[1][0].flatten(1).float()
        logits = (keys @ self.weight + self.bias).unflatten(0, grid)
        logits = interpolate(logits[None, None], scale_factor=float(patch), mode="bilinear")[0, 0]
        return logits[: image.height, : image.width].sigmoid()
