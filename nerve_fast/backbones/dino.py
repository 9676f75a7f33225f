"""DINO, DINOv2 and DINOv3 through transformers: features of patches, and an affinity source."""

import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.profiler import record_function
from transformers import (
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    PreTrainedModel,
    ViTModel,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.dinov3_vit.modeling_dinov3_vit import apply_rotary_pos_emb

from nerve_fast.backbones.capture import captured, watch
from nerve_fast.backbones.files import Checkpoint, Layout, Network, read_config
from nerve_fast.backbones.kinds import not_dino
from nerve_fast.backbones.loading import load
from nerve_fast.backbones.positions import resampled_positions
from nerve_fast.backbones.source import GraphFeatures, tiled_features
from nerve_fast.backbones.text_cache import fingerprint
from nerve_fast.errors import InputError
from nerve_fast.imaging.images import to_tensor
from nerve_fast.imaging.tiling import Tiling

DEFAULT_PROXY = "facebook/dino-vitb8"

NETWORK = Network()
LAYOUT = Layout((NETWORK,))

MODELS = {
    "vit": ViTModel,
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
    "dinov3_vit": DINOv3ViTModel,
}
"""By the ``model_type`` of a checkpoint's configuration."""

ACTIVATIONS = 40
"""Live activations of a layer in multiples of its hidden states, those of its MLP included."""

PIXEL_BYTES = 40
"""A pixel of a tile, from 8 bits to the normalised input."""


class DINOBackbone:
    """A frozen vision transformer: a feature, a query and a key for each of its patches.

    It is an :class:`~nerve_fast.backbones.source.AffinitySource` whose tokens are its patches.

    Args:
        model: one of ``MODELS``, on its device and in its dtype.
        image_mean, image_std: per-channel normalisation, three numbers each.
        layer: of which queries and keys are taken, from 0; negative numbers count from the last.
        revision: of the hub's repository, where the model comes from one.

    Attributes:
        heads, head_dim: ``H`` and ``D``.
        unit, multiple: side of a patch, in pixels.
        native_size: side of the images that the model was trained on, in pixels.

    Raises:
        InputError: there is no such layer.
        ValueError: there are no layers at all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        layer: int = -1,
        revision: str | None = None,
    ):
        self.model = model.eval().requires_grad_(False)
        self.patch = self.unit = self.multiple = model.config.patch_size
        self.native_size = model.config.image_size
        self.image_mean = torch.tensor(image_mean).view(3, 1, 1)
        self.image_std = torch.tensor(image_std).view(3, 1, 1)
        self.revision = revision
        self.heads = model.config.num_attention_heads
        self.head_dim = model.config.hidden_size // self.heads
        layers = projections(model)
        if not layers:
            raise ValueError("the model has no layers")
        if not isinstance(layer, int) or not -len(layers) <= layer < len(layers):
            raise InputError(
                f"layer is {layer!r}; expected a whole number from {-len(layers)} to "
                f"{len(layers) - 1}, as the model has {len(layers)} layers"
            )
        self.layer = layer % len(layers)
        self._projections = layers[self.layer]
        watch(self._projections)
        if model.config.model_type in ("vit", "dinov2"):
            # As its authors do it; transformers does so for the models with registers only.
            model.embeddings.interpolate_pos_encoding = self._positions

    @classmethod
    def from_pretrained(
        cls,
        source: str = DEFAULT_PROXY,
        *,
        device: torch.device,
        dtype: torch.dtype,
        layer: int = -1,
        option: str = "proxy",
    ) -> "DINOBackbone":
        """Load a checkpoint from the hub or a local folder in transformers layout.

        Args:
            source: hub id (``owner/name``, or ``owner/name@revision`` for one commit, tag or
                branch) or local folder.
            device, dtype: of the model.
            layer: as for the class.
            option: the argument that the source was given as, for messages.

        Raises:
            InputError: it is not available, lacks a file, is damaged or of another kind; there is
                no such layer.
        """
        source = str(source)

        def loader(checkpoint: Checkpoint) -> "DINOBackbone":
            kind = read_config(checkpoint.folder / NETWORK.config)["model_type"]
            # DINO was saved without the pooler that transformers' ViT has besides.
            options = {"add_pooling_layer": False} if kind == "vit" else {}
            model = checkpoint.network(NETWORK, MODELS[kind], dtype, **options)
            try:
                images, _ = ImageProcessingMixin.get_image_processor_dict(
                    str(checkpoint.folder), local_files_only=True
                )
            except OSError:
                images = {}
            return cls(
                model.to(device),
                image_mean=images.get("image_mean", IMAGENET_DEFAULT_MEAN),
                image_std=images.get("image_std", IMAGENET_DEFAULT_STD),
                layer=layer,
                revision=checkpoint.revision,
            )

        def refuse(folder: Path) -> str | None:
            return not_dino(folder, MODELS, option)

        return load(option, source, LAYOUT, option, loader, refuse)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model computes."""
        return self.model.dtype

    @property
    def identity(self) -> str:
        """The kind, the layer, the normalisation of pixels, and a digest of the weights."""
        pixels = [self.image_mean.flatten().tolist(), self.image_std.flatten().tolist()]
        kind = self.model.config.model_type
        return f"{kind} {json.dumps([self.layer, *pixels])} {self._weights}"

    @functools.cached_property
    def _weights(self) -> str:
        return f"sha256 {fingerprint(self.model)} revision {self.revision}"

    def tile_memory(self, tile: tuple[int, int]) -> int:
        """Bytes of a tile's hidden states on their way through a layer."""
        tokens = math.prod(tile) // self.patch**2
        hidden = ACTIVATIONS * self.model.config.hidden_size * self.dtype.itemsize
        return tokens * hidden + PIXEL_BYTES * math.prod(tile)

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
        x = self._forward(pixels).last_hidden_state
        return x[:, -grid[0] * grid[1] :].unflatten(1, grid)

    @torch.no_grad()
    def projected(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys ``(b, n, H, D)`` of images ``(b, 3, height, width)`` as for features."""
        pixels = pixels.to(self.device, self.dtype)
        patches = (pixels.shape[-2] // self.patch) * (pixels.shape[-1] // self.patch)
        q, k = (
            x[:, -patches:].unflatten(-1, (self.heads, self.head_dim))
            for x in captured(self._projections, lambda: self._forward(pixels))
        )
        if rotary := getattr(self.model, "rope_embeddings", None):
            q, k = (
                x.transpose(1, 2)
                for x in apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *rotary(pixels))
            )
        return q, k

    @torch.no_grad()
    def queries_and_keys(
        self,
        images: Sequence[Image.Image],
        size: tuple[int, int],
        generators: Sequence[torch.Generator],
        *,
        tiling: Tiling | None = None,
        batch_size: int = 1,
        dtype: torch.dtype | None = None,
        advance: Callable[[int], None] = lambda tiles: None,
    ) -> GraphFeatures:
        """Queries and keys of the patches, as the layer's attention compares them.

        Where the model has rotary positions they are applied. No noise is drawn. Arguments and
        result are those of :meth:`~nerve_fast.backbones.source.AffinitySource.queries_and_keys`.
        """

        def project(tiles):
            pixels = torch.stack([self._pixels(tile) for _, _, tile in tiles])
            with record_function("nerve_fast: DINO"):
                return self.projected(pixels)

        return tiled_features(
            images,
            size,
            project,
            unit=self.unit,
            tiling=tiling,
            batch_size=batch_size,
            dtype=dtype,
            advance=advance,
        )

    def compile(self) -> None:
        """``torch.compile`` the layers before the one whose queries and keys are taken."""
        number = re.compile(r"(?:\w+\.)*layers?\.(\d+)")
        for name, block in self.model.named_modules():
            match = number.fullmatch(name)
            if match and int(match[1]) < self.layer:
                block.compile()

    def _pixels(self, image: Image.Image) -> Tensor:
        return (to_tensor(image) - self.image_mean) / self.image_std

    def _forward(self, pixels: Tensor):
        # Dinov2 interpolates its position embeddings without being asked.
        asked = {"interpolate_pos_encoding": True} if isinstance(self.model, ViTModel) else {}
        return self.model(pixels.to(self.dtype), **asked)

    def _positions(self, tokens: Tensor, height: int, width: int) -> Tensor:
        grid = (height // self.patch, width // self.patch)
        positions = self.model.embeddings.position_embeddings[0]
        return resampled_positions(positions.float(), grid, 0.1).to(tokens.dtype)


def projections(model: PreTrainedModel) -> list[tuple[nn.Module, nn.Module]]:
    """The projections to queries and keys of each layer, under the names of any transformers 5."""
    q, k = (
        [module for name, module in model.named_modules() if name.rpartition(".")[2] in names]
        for names in (("q_proj", "query"), ("k_proj", "key"))
    )
    return list(zip(q, k, strict=True))
