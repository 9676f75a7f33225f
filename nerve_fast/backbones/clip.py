"""CLIP through transformers: text embeddings of words, and patch features at any grid."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize
from transformers import BatchEncoding, CLIPModel, CLIPTokenizer
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.backbones.files import Checkpoint, Layout, Network
from nerve_fast.backbones.kinds import not_clip
from nerve_fast.backbones.loading import load
from nerve_fast.backbones.positions import resampled_positions
from nerve_fast.backbones.words import WordEncoder
from nerve_fast.imaging.images import to_tensor
from nerve_fast.utils.files import cache_folder

DEFAULT_CLIP = "openai/clip-vit-large-patch14"

WEIGHTS = "model.safetensors"
"""The file of the default checkpoint whose presence in the cache stands for all of it."""

NETWORK = Network()
LAYOUT = Layout(
    networks=(NETWORK,),
    others=(
        ("preprocessor_config.json", "processor_config.json"),
        ("tokenizer.json", "vocab.json"),
        ("tokenizer.json", "merges.txt"),
    ),
)

ReadOut = Callable[[Sequence[CLIPEncoderLayer], Tensor, tuple[int, int], Tensor], Tensor]
"""What stands in for CLIP's encoder: ``(layers, x, grid, pixels) -> (B, h', w', C)``.

It is called with the encoder's layers; with what the first of them takes, ``(B, 1+h·w, C)``, the
class token first; with the patches' grid ``(h, w)``; and with the pixels as CLIP had them,
``(B, 3, H, W)``. The last layers it replaces; those before it runs as they are. It gives what goes
into CLIP's last normalisation and projection, on the patches or on a grid of its own. With a
dimension in front, ``(L, B, h', w', C)``, it gives several, whose similarities are averaged.

An attribute ``eps`` takes the place of the ε of CLIP's first and last layer normalisation.
"""


Backbone = TypeVar("Backbone", bound="CLIPBackbone")


class CLIPBackbone(WordEncoder):
    """A frozen CLIP model that gives a feature for each patch and an embedding for each word.

    Args:
        model: any transformers CLIP, on its device and in its dtype.
        tokenizer: its tokenizer.
        image_mean, image_std: per-channel normalisation, three numbers each.
        resample: Pillow's number of the filter that resizes images.
        source: hub id or folder, for messages.
        cache: the folder for text embeddings.
        revision: of the hub's repository, where the model comes from one.

    Raises:
        ValueError: the tokenizer has tokens that the model does not know.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        *,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        resample: int,
        source: str,
        cache: Path,
        revision: str | None = None,
    ):
        super().__init__(model, tokenizer, source=source, cache=cache, revision=revision)
        self.image_mean = torch.tensor(image_mean).view(3, 1, 1)
        self.image_std = torch.tensor(image_std).view(3, 1, 1)
        self.resample = Image.Resampling(resample)
        self.patch = model.config.vision_config.patch_size
        self.image_size = model.config.vision_config.image_size
        self.embedding_size = model.config.projection_dim

    @classmethod
    def from_pretrained(
        cls: type[Backbone], source: str = DEFAULT_CLIP, *, device: torch.device, dtype: torch.dtype
    ) -> Backbone:
        """Load a CLIP checkpoint.

        Args:
            source: hub id (``owner/name``, or ``owner/name@revision`` for one commit, tag or
                branch) or local folder in transformers layout.
            device, dtype: of the model.

        Raises:
            InputError: it is not available, lacks a file, is damaged or of another kind.
        """
        source = str(source)

        def loader(checkpoint: Checkpoint) -> Backbone:
            folder = str(checkpoint.folder)
            tokenizer = CLIPTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            images, _ = ImageProcessingMixin.get_image_processor_dict(folder, local_files_only=True)
            return cls(
                checkpoint.network(NETWORK, CLIPModel, dtype).to(device),
                tokenizer,
                # CLIP's own values, for the checkpoints that do not repeat them.
                image_mean=images.get("image_mean", OPENAI_CLIP_MEAN),
                image_std=images.get("image_std", OPENAI_CLIP_STD),
                resample=images.get("resample", Image.Resampling.BICUBIC),
                source=source,
                cache=cache_folder(),
                revision=checkpoint.revision,
            )

        return load("CLIP", source, LAYOUT, "clip", loader, not_clip)

    def text_parts(self) -> tuple[nn.Module, ...]:
        """See :class:`WordEncoder`."""
        return self.model.text_model, self.model.text_projection

    def embed(self, tokens: BatchEncoding) -> Tensor:
        """See :class:`WordEncoder`."""
        pooled = self.model.text_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        return self.model.text_projection(pooled)

    def compile(self) -> None:
        """``torch.compile`` the layers that are run as they are, all but the last."""
        for layer in self.model.vision_model.encoder.layers[:-1]:
            layer.compile()

    def resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The image at ``size = (W, H)``, by the checkpoint's own filter."""
        return image.resize(size, self.resample)

    def pixels(self, image: Image.Image) -> Tensor:
        """The image as CLIP wants it: ``(3, H, W)``, normalised."""
        pixels = (to_tensor(image) - self.image_mean) / self.image_std
        return pixels.to(self.device, self.model.dtype)

    @torch.no_grad()
    def patch_features(
        self,
        pixels: Tensor,
        read_out: ReadOut,
        position_offset: float = 0.0,
        position_filter: str = "bicubic",
    ) -> Tensor:
        """A feature in CLIP's joint space for each patch.

        Position embeddings are interpolated to the patches' grid.

        Args:
            pixels: ``(B, 3, H, W)``; what is left of a side beyond whole patches is not seen.
            read_out: stands in for the encoder.
            position_offset, position_filter: see
                :func:`~nerve_fast.backbones.positions.resampled_positions`.

        Returns:
            ``(B, H/patch, W/patch, E)`` float32, or on the grid that ``read_out`` gives; of norm 1,
            or the mean of several such.
        """
        projected = self.projected(pixels, read_out, position_offset, position_filter)
        features = normalize(projected, dim=-1)
        return features if features.ndim == 4 else features.mean(0)

    @torch.no_grad()
    def projected(
        self,
        pixels: Tensor,
        read_out: ReadOut,
        position_offset: float = 0.0,
        position_filter: str = "bicubic",
    ) -> Tensor:
        """What :meth:`patch_features` makes unit length, and averages where there are several."""
        vision = self.model.vision_model
        embeddings = vision.embeddings
        patches = embeddings.patch_embedding(pixels)
        grid = tuple(patches.shape[-2:])
        first = embeddings.class_embedding.expand(len(patches), 1, -1)
        x = torch.cat([first, patches.flatten(2).mT], dim=1)
        x = x + resampled_positions(
            embeddings.position_embedding.weight, grid, position_offset, position_filter
        )
        eps = getattr(read_out, "eps", None)
        x = layer_normed(vision.pre_layrnorm, x, eps)
        x = read_out(vision.encoder.layers, x, grid, pixels)
        return self.model.visual_projection(layer_normed(vision.post_layernorm, x, eps)).float()


def layer_normed(norm: nn.LayerNorm, x: Tensor, eps: float | None = None) -> Tensor:
    """``x`` through a layer normalisation, with another ε where one is given."""
    if eps is None:
        return norm(x)
    return layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, eps)
