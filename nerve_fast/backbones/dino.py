"""DINO and DINOv2 through transformers: features that tell things apart, patch by patch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    Dinov2Model,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    ViTModel,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from nerve_fast.backbones.loading import complete, load
from nerve_fast.backbones.positions import resampled_positions
from nerve_fast.errors import InputError

DEFAULT_PROXY = "facebook/dino-vitb8"

FILES = (
    "config.json",
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
)

MODELS = {
    "vit": ViTModel,
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
}
"""By the ``model_type`` of a checkpoint's configuration."""


class DINOBackbone:
    """A frozen vision transformer that gives a feature for each of its patches.

    Args:
        model: one of ``MODELS``, on its device and in its dtype.
        image_mean, image_std: per-channel normalisation, three numbers each.
    """

    def __init__(
        self, model: PreTrainedModel, *, image_mean: Sequence[float], image_std: Sequence[float]
    ):
        self.model = model.eval().requires_grad_(False)
        self.patch = model.config.patch_size
        self.image_mean = torch.tensor(image_mean).view(3, 1, 1)
        self.image_std = torch.tensor(image_std).view(3, 1, 1)
        if model.config.model_type != "dinov2_with_registers":
            # As its authors do it; transformers does it so for the models with registers only.
            model.embeddings.interpolate_pos_encoding = self._positions

    @classmethod
    def from_pretrained(
        cls, source: str = DEFAULT_PROXY, *, device: torch.device, dtype: torch.dtype
    ) -> "DINOBackbone":
        """Load a checkpoint from the hub or a local folder in transformers layout.

        Raises:
            InputError: it cannot be had, lacks a file, or is of another kind.
        """
        source = str(source)

        def loader(local):
            kind = AutoConfig.from_pretrained(source, local_files_only=local).model_type
            if kind not in MODELS:
                raise InputError(
                    f"{source}: the proxy model is a {kind!r}; expected one of {', '.join(MODELS)}"
                )
            # DINO was saved without the pooler that transformers' ViT has besides.
            options = {"add_pooling_layer": False} if kind == "vit" else {}
            model = MODELS[kind].from_pretrained(
                source, dtype=dtype, local_files_only=local, output_loading_info=True, **options
            )
            try:
                images, _ = ImageProcessingMixin.get_image_processor_dict(
                    source, local_files_only=local
                )
            except OSError:
                images = {}
            return complete(model), images

        model, images = load("proxy", source, FILES, "proxy", loader)
        return cls(
            model.to(device),
            image_mean=images.get("image_mean", IMAGENET_DEFAULT_MEAN),
            image_std=images.get("image_std", IMAGENET_DEFAULT_STD),
        )

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """The last layer's tokens, normalised as the model does, without class and registers.

        Args:
            pixels: ``(B, 3, H, W)``, normalised by ``image_mean`` and ``image_std``, sides
                multiples of ``patch``.

        Returns:
            ``(B, H/patch, W/patch, C)`` in the model's dtype.
        """
        grid = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        # Dinov2 interpolates its position embeddings without being asked.
        asked = {"interpolate_pos_encoding": True} if isinstance(self.model, ViTModel) else {}
        x = self.model(pixels.to(self.model.dtype), **asked).last_hidden_state
        return x[:, -grid[0] * grid[1] :].unflatten(1, grid)

    def _positions(self, tokens: Tensor, height: int, width: int) -> Tensor:
        grid = (height // self.patch, width // self.patch)
        positions = self.model.embeddings.position_embeddings[0]
        return resampled_positions(positions.float(), grid, 0.1).to(tokens.dtype)
