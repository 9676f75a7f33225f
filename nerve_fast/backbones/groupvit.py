"""GroupViT through transformers: groups of patches, and embeddings of them and of words."""

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BatchEncoding, CLIPTokenizer, GroupViTModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from nerve_fast.backbones.clip import LAYOUT, NETWORK
from nerve_fast.backbones.files import Checkpoint
from nerve_fast.backbones.kinds import not_one_of
from nerve_fast.backbones.loading import load
from nerve_fast.backbones.words import WordEncoder
from nerve_fast.utils.files import cache_folder

DEFAULT_GROUPVIT = "nvidia/groupvit-gcc-yfcc"


class GroupViTBackbone(WordEncoder):
    """A frozen GroupViT.

    Args:
        model: of transformers, on its device and in its dtype.
        tokenizer: its tokenizer.
        image_mean, image_std: per-channel normalisation, three numbers each.
        source, cache, revision: see :class:`~nerve_fast.backbones.words.WordEncoder`.
    """

    reader = "GroupViT"

    def __init__(
        self,
        model: GroupViTModel,
        tokenizer: CLIPTokenizer,
        *,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        source: str,
        cache: Path,
        revision: str | None = None,
    ):
        super().__init__(model, tokenizer, source=source, cache=cache, revision=revision)
        self.image_mean = torch.tensor(image_mean).view(3, 1, 1)
        self.image_std = torch.tensor(image_std).view(3, 1, 1)
        self.patch = model.config.vision_config.patch_size
        self.image_size = model.config.vision_config.image_size

    @classmethod
    def from_pretrained(
        cls, source: str = DEFAULT_GROUPVIT, *, device: torch.device, dtype: torch.dtype
    ) -> "GroupViTBackbone":
        """Load a checkpoint from the hub or a local folder in transformers layout.

        Raises:
            InputError: it is not available, lacks a file, is damaged or of another kind.
        """

        def loader(checkpoint: Checkpoint) -> "GroupViTBackbone":
            folder = str(checkpoint.folder)
            images, _ = ImageProcessingMixin.get_image_processor_dict(folder, local_files_only=True)
            return cls(
                checkpoint.network(NETWORK, GroupViTModel, dtype).to(device),
                CLIPTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                ),
                image_mean=images.get("image_mean", IMAGENET_DEFAULT_MEAN),
                image_std=images.get("image_std", IMAGENET_DEFAULT_STD),
                source=source,
                cache=cache_folder(),
                revision=checkpoint.revision,
            )

        def refuse(folder: Path) -> str | None:
            expected = f"a GroupViT, such as {DEFAULT_GROUPVIT}"
            return not_one_of(folder, {"groupvit": GroupViTModel}, expected)

        return load("GroupViT", str(source), LAYOUT, "clip", loader, refuse)

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by, at most 100."""
        return self.model.logit_scale.exp().clamp(max=100).item()

    def text_parts(self) -> tuple[nn.Module, ...]:
        """See :class:`~nerve_fast.backbones.words.WordEncoder`."""
        return self.model.text_model, self.model.text_projection

    def embed(self, tokens: BatchEncoding) -> Tensor:
        """See :class:`~nerve_fast.backbones.words.WordEncoder`."""
        pooled = self.model.text_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        return self.model.text_projection(pooled)

    @torch.no_grad()
    def groups(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The groups that the last stage makes of an image.

        Args:
            pixels: ``(B, 3, H, W)``, normalised; what is left beyond whole patches is not seen.

        Returns:
            assigned: ``(B, G, h, w)`` float32, how much of each patch belongs to each group: the
                soft assignments of all stages multiplied; sums to 1 over ``G``.
            features: ``(B, G, E)`` float32 of the groups, of norm 1.
            image: ``(B, E)`` float32 of their mean before the projection, of norm 1.
        """
        vision = self.model.vision_model
        tall, wide = (side // self.patch for side in pixels.shape[-2:])
        pixels = pixels[..., : tall * self.patch, : wide * self.patch]
        # transformers' own forward does not hand this on.
        x = vision.embeddings(pixels.to(self.model.dtype), interpolate_pos_encoding=True)
        encoded = vision.encoder(x, output_attentions=True, return_dict=True)
        groups = vision.layernorm(encoded.last_hidden_state)
        # Each is (B, groups, groups of the stage before); the last stage makes none.
        stages = [stage.float() for stage in encoded.attentions if stage is not None]
        assigned = functools.reduce(lambda before, stage: stage @ before, stages)
        project = self.model.visual_projection
        features = project(groups.flatten(0, 1)).unflatten(0, groups.shape[:2])
        image = project(groups.mean(1))
        return (
            assigned.unflatten(-1, (tall, wide)),
            normalize(features.float(), dim=-1),
            normalize(image.float(), dim=-1),
        )
