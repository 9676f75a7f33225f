"""CLIP through transformers: text embeddings of words, and patch features at any grid."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize
from tqdm import tqdm
from transformers import CLIPModel, CLIPTokenizer
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.backbones.files import Checkpoint, Layout, Network
from nerve_fast.backbones.kinds import not_clip
from nerve_fast.backbones.loading import load
from nerve_fast.backbones.positions import resampled_positions
from nerve_fast.backbones.templates import IMAGENET_TEMPLATES
from nerve_fast.backbones.text_cache import TextCache, fingerprint
from nerve_fast.errors import InputError
from nerve_fast.imaging.images import to_tensor
from nerve_fast.utils.files import cache_folder
from nerve_fast.utils.provenance import digest, version

DEFAULT_CLIP = "openai/clip-vit-large-patch14"

MOST_WORDS = 10_000
"""Words whose embeddings are kept in memory: 30 MB for ViT-L/14."""

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


class CLIPBackbone:
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
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.image_mean = torch.tensor(image_mean).view(3, 1, 1)
        self.image_std = torch.tensor(image_std).view(3, 1, 1)
        self.resample = Image.Resampling(resample)
        self.source = source
        self.revision = revision
        self.patch = model.config.vision_config.patch_size
        self.image_size = model.config.vision_config.image_size
        self.context = model.config.text_config.max_position_embeddings
        self._check_tokens()
        self._embeddings: dict[str, Tensor] = {}
        self._cache_folder = cache
        self._cache: TextCache | None = None
        self._known_state: tuple = ()

    @classmethod
    def from_pretrained(
        cls, source: str = DEFAULT_CLIP, *, device: torch.device, dtype: torch.dtype
    ) -> "CLIPBackbone":
        """Load a CLIP checkpoint.

        Args:
            source: hub id (``owner/name``, or ``owner/name@revision`` for one commit, tag or
                branch) or local folder in transformers layout.
            device, dtype: of the model.

        Raises:
            InputError: it is not available, lacks a file, is damaged or of another kind.
        """
        source = str(source)

        def loader(checkpoint: Checkpoint) -> "CLIPBackbone":
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

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def encode_words(self, words: Sequence[str], *, progress: bool = False) -> Tensor:
        """Text embeddings: the mean over OpenAI's 80 templates of normalised embeddings.

        Each word is encoded once: later calls take it from memory, later runs from disk.

        Args:
            words: names of things.
            progress: show a progress bar, on a terminal, over the words not yet known.

        Returns:
            ``(len(words), E)`` float32 on the model's device, rows of norm 1.

        Raises:
            InputError: a word does not fit into the model's context.
        """
        self._forget_if_changed()
        embeddings = self._embeddings
        known = {word: embeddings[word] for word in words if word in embeddings}
        missing = [word for word in dict.fromkeys(words) if word not in known]
        for word in tqdm(missing, "text", unit="word", disable=None if progress else True):
            if self._cache is None:
                self._cache = TextCache(self._cache_folder, self._identity())
            embedding = self._cache.read(word)
            if embedding is None:
                embedding = self._encode(word)
                self._cache.write(word, embedding)
            known[word] = embedding
        if missing:
            # Another dict, as other threads may be reading this one.
            latest = {**self._embeddings, **known}
            for word in list(latest)[:-MOST_WORDS]:
                del latest[word]
            self._embeddings = latest
        return torch.stack([known[word] for word in words]).to(self.device)

    def _encode(self, word: str) -> Tensor:
        prompts = [template.format(word) for template in IMAGENET_TEMPLATES]
        tokens = self.tokenizer(prompts, padding=True, return_tensors="pt", verbose=False)
        length = tokens.input_ids.shape[1]
        if length > self.context:
            raise InputError(
                f"the label {word!r} takes {length} tokens with its prompt, and CLIP reads "
                f"{self.context}: shorten it"
            )
        tokens = tokens.to(self.device)
        # What is kept must not depend on the caller's autocast.
        with torch.autocast(self.device.type, enabled=False):
            pooled = self.model.text_model(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            ).pooler_output
            embeddings = normalize(self.model.text_projection(pooled).float(), dim=-1)
            return normalize(embeddings.mean(0), dim=-1).cpu()

    def _check_tokens(self) -> None:
        most = max(self.tokenizer.get_vocab().values(), default=-1)
        known = self.model.config.text_config.vocab_size
        if most >= known:
            raise ValueError(
                f"the tokenizer has token {most}, and the model knows {known}: they belong to "
                "different models"
            )

    def _state(self) -> tuple:
        """Return a cheap fingerprint that changes when cached embeddings are out of date."""
        weights = itertools.chain(
            self.model.text_model.parameters(), self.model.text_projection.parameters()
        )
        # Tensors that were made in inference mode do not count changes.
        versions = [
            (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
            for weight in weights
        ]
        return self.device, self.model.dtype, IMAGENET_TEMPLATES, len(self.tokenizer), versions

    def _forget_if_changed(self) -> None:
        state = self._state()
        if state != self._known_state:
            self._known_state, self._embeddings, self._cache = state, {}, None

    def _identity(self) -> dict:
        """All that an embedding depends on besides the word."""
        config = self.model.config.text_config.to_dict()
        for name in ("_name_or_path", "transformers_version"):
            config.pop(name, None)
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # Set anew by each call.
        for name in ("padding", "truncation"):
            tokenizer.pop(name, None)
        return {
            "revision": self.revision,
            "weights": fingerprint(self.model.text_model, self.model.text_projection),
            "config": json.dumps(config, sort_keys=True, default=str),
            "attention": self.model.config._attn_implementation,
            "tokenizer": digest(tokenizer),
            "padding": [
                self.tokenizer.pad_token_id,
                self.tokenizer.padding_side,
                self.tokenizer.model_max_length,
            ],
            "templates": IMAGENET_TEMPLATES,
            "computed": [self.device.type, str(self.model.dtype)],
            "versions": [version("torch"), version("transformers"), version("tokenizers")],
        }

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
        x = self.model.visual_projection(layer_normed(vision.post_layernorm, x, eps))
        features = normalize(x.float(), dim=-1)
        return features if features.ndim == 4 else features.mean(0)


def layer_normed(norm: nn.LayerNorm, x: Tensor, eps: float | None = None) -> Tensor:
    """``x`` through a layer normalisation, with another ε where one is given."""
    if eps is None:
        return norm(x)
    return layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, eps)
