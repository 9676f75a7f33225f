"""SigLIP and SigLIP 2 through transformers: embeddings of words, and features of patches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from transformers import (
    AutoTokenizer,
    BatchEncoding,
    PreTrainedTokenizerBase,
    Siglip2Model,
    SiglipModel,
)
from transformers.image_processing_base import ImageProcessingMixin

from nerve_fast.backbones.clip import NETWORK, ReadOut
from nerve_fast.backbones.files import Checkpoint, Layout, read_config
from nerve_fast.backbones.kinds import not_one_of
from nerve_fast.backbones.loading import load
from nerve_fast.backbones.words import WordEncoder
from nerve_fast.errors import InputError
from nerve_fast.imaging.images import to_tensor
from nerve_fast.utils.files import cache_folder

DEFAULT_SIGLIP = "google/siglip-base-patch16-224"

MODELS = {"siglip": SiglipModel, "siglip2": Siglip2Model}
"""By the ``model_type`` of a configuration: SigLIP 2 of one resolution is of the first kind, and
that of any (NaFlex) of the second."""

LAYOUT = Layout(
    networks=(NETWORK,),
    others=(
        ("preprocessor_config.json", "processor_config.json"),
        ("tokenizer.json", "spiece.model"),
    ),
)


class SigLIPBackbone(WordEncoder):
    """A frozen SigLIP that gives a feature for each patch and an embedding for each word.

    It has what :class:`~nerve_fast.backbones.clip.CLIPBackbone` has for the priors. Prompts are in
    lower case and padded to the model's context, as the models were trained.

    Args:
        model: of transformers, on its device and in its dtype.
        tokenizer: its tokenizer.
        image_mean, image_std: per-channel normalisation, three numbers each.
        resample: Pillow's number of the filter that resizes images.
        source, cache, revision: see :class:`~nerve_fast.backbones.words.WordEncoder`.

    Raises:
        ValueError: the model has no pooling head, whose value path is what is read.
    """

    reader = "SigLIP"
    padding = "max_length"

    def __init__(
        self,
        model: SiglipModel | Siglip2Model,
        tokenizer: PreTrainedTokenizerBase,
        *,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        resample: int,
        source: str,
        cache: Path,
        revision: str | None = None,
    ):
        super().__init__(model, tokenizer, source=source, cache=cache, revision=revision)
        if not getattr(model.vision_model, "use_head", True):
            raise ValueError("the model has no pooling head")
        self.image_mean = torch.tensor(image_mean).view(3, 1, 1)
        self.image_std = torch.tensor(image_std).view(3, 1, 1)
        self.resample = Image.Resampling(resample)
        vision = model.config.vision_config
        self.patch = vision.patch_size
        self.flexible = isinstance(model, Siglip2Model)
        side = int(vision.num_patches**0.5) * self.patch if self.flexible else vision.image_size
        self.image_size = side
        self.embedding_size = vision.hidden_size

    @classmethod
    def from_pretrained(
        cls, source: str = DEFAULT_SIGLIP, *, device: torch.device, dtype: torch.dtype
    ) -> "SigLIPBackbone":
        """Load a checkpoint from the hub or a local folder in transformers layout.

        Raises:
            InputError: it is not available, lacks a file, is damaged or of another kind.
        """

        def loader(checkpoint: Checkpoint) -> "SigLIPBackbone":
            folder = str(checkpoint.folder)
            kind = read_config(checkpoint.folder / NETWORK.config)["model_type"]
            images, _ = ImageProcessingMixin.get_image_processor_dict(folder, local_files_only=True)
            return cls(
                checkpoint.network(NETWORK, MODELS[kind], dtype).to(device),
                _tokenizer_of(folder),
                image_mean=images.get("image_mean", [0.5] * 3),
                image_std=images.get("image_std", [0.5] * 3),
                resample=images.get("resample", Image.Resampling.BICUBIC),
                source=source,
                cache=cache_folder(),
                revision=checkpoint.revision,
            )

        def refuse(folder: Path) -> str | None:
            return not_one_of(folder, MODELS, f"a SigLIP or SigLIP 2, such as {DEFAULT_SIGLIP}")

        return load("SigLIP", str(source), LAYOUT, "clip", loader, refuse)

    def text_parts(self) -> tuple[nn.Module, ...]:
        """See :class:`~nerve_fast.backbones.words.WordEncoder`."""
        return (self.model.text_model,)

    def embed(self, tokens: BatchEncoding) -> Tensor:
        """See :class:`~nerve_fast.backbones.words.WordEncoder`; the padding is read, too."""
        # Without a mask, as the models were trained.
        return self.model.text_model(input_ids=tokens.input_ids).pooler_output

    def _tokens(self, prompts: list[str]) -> BatchEncoding:
        # The last token is the one that is read, as in the authors' code (big_vision), where the
        # text is filled up on the right, and cut so that its end stays: SigLIP's with the token
        # that ends a text, SigLIP 2's with that of padding. Tokenizers that pad on the left would
        # have another one there.
        self.tokenizer.padding_side = "right"
        return super()._tokens([prompt.lower() for prompt in prompts])

    def compile(self) -> None:
        """``torch.compile`` the layers."""
        for layer in self.model.vision_model.encoder.layers:
            layer.compile()

    def resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The image at ``size = (W, H)``, by the checkpoint's own filter."""
        return image.resize(size, self.resample)

    def pixels(self, image: Image.Image) -> Tensor:
        """The image as SigLIP wants it: ``(3, H, W)``, normalised."""
        pixels = (to_tensor(image) - self.image_mean) / self.image_std
        return pixels.to(self.device, self.model.dtype)

    def logits(self, cosines: Tensor) -> Tensor:
        """Cosines as the logits whose sigmoid the model was trained with."""
        scale, bias = self.model.logit_scale.float().exp(), self.model.logit_bias.float()
        return cosines * scale + bias

    @torch.no_grad()
    def patch_features(
        self,
        pixels: Tensor,
        read_out: ReadOut,
        position_offset: float = 0.0,
        position_filter: str = "bicubic",
    ) -> Tensor:
        """A feature in the joint space for each patch.

        Args:
            pixels: ``(B, 3, H, W)``; what is left of a side beyond whole patches is not seen.
            read_out: makes features of the last layer's tokens, ``(B, h·w, C)``, of the pooling
                head, given as ``layers``.
            position_offset, position_filter: not read: positions are resampled as the model does.

        Returns:
            ``(B, h, w, C)`` float32 of norm 1.
        """
        vision = self.model.vision_model
        grid = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        x = vision.encoder(inputs_embeds=self._embedded(pixels, grid)).last_hidden_state
        features = read_out(vision.head, vision.post_layernorm(x), grid, pixels)
        return normalize(features.float(), dim=-1)

    def _embedded(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        embeddings, patch = self.model.vision_model.embeddings, self.patch
        pixels = pixels[..., : grid[0] * patch, : grid[1] * patch]
        if not self.flexible:
            return embeddings(pixels, interpolate_pos_encoding=True)
        # Patches row by row, and in each its pixels row by row, channels last.
        patches = pixels.unflatten(3, (grid[1], patch)).unflatten(2, (grid[0], patch))
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return embeddings(patches, torch.tensor([grid] * len(pixels), device=pixels.device))


def _tokenizer_of(folder: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise InputError(
            f"{folder}: its tokenizer needs sentencepiece, which is not installed; get it: "
            'pip install "nerve-fast[siglip]"'
        ) from error


def value_path(head: Any, x: Tensor, grid: tuple[int, int], pixels: Tensor) -> Tensor:
    r"""What the pooling head would make of each token, were it the only one.

    The head's probe attends to all tokens, and its attention's output is a mean of their values;
    with one token it is that token's value whatever the probe. So, with its value and output
    projections, normalisation and MLP,

    .. math:: y = W_o (W_v x + b_v) + b_o, \quad y + \mathrm{MLP}(\mathrm{LN}(y))

    lies where the pooled image does: beside the words.

    Arguments and result are those of :data:`~nerve_fast.backbones.clip.ReadOut`, but for the
    layers, in whose place stands the head.
    """
    attention = head.attention
    _, _, weight = attention.in_proj_weight.chunk(3)
    _, _, bias = attention.in_proj_bias.chunk(3)
    y = attention.out_proj(linear(x, weight, bias))
    return (y + head.mlp(head.layernorm(y))).unflatten(1, grid)
