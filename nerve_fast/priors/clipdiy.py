"""CLIP-DIY (Wysoczańska et al.: CLIP Dense Inference Yields Segmentation For-Free, WACV 2024)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.dino import DINOBackbone
from nerve_fast.backbones.found import DEFAULT_DINO, Saliency
from nerve_fast.priors.config import PriorConfig
from nerve_fast.priors.prior import ConfiguredPrior, WholeImage
from nerve_fast.priors.probabilities import apart, best_words
from nerve_fast.priors.registry import ACTIVATIONS, Needed, system
from nerve_fast.priors.resizing import opencv_bilinear

SIDE = 256
"""Side of the square that every image is squashed to, in pixels."""

CROPS = (256, 128, 64)
"""Sides of the crops of each grid, which overlap by half."""

BATCH = 16
"""Crops that go through CLIP at a time."""


@dataclasses.dataclass(frozen=True, eq=False)
class Cropped:
    """What the networks find in images.

    Attributes:
        features: of each grid of crops, ``(B, n, n, E)`` float32 of norm 1.
        saliency: ``(B, SIDE, SIDE)`` float32 from 0 to 1.
    """

    features: list[Tensor]
    saliency: Tensor


@system(
    "clip-diy",
    clip="laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    templates="clip-diy",
    reads=("logit_scale", "background"),
    networks={
        "dino": Needed("a DINO", DEFAULT_DINO),
        "found": Needed(
            "FOUND's weights, the file data/weights/decoder_weights.pt of "
            "https://github.com/valeoai/FOUND"
        ),
    },
)
class CLIPDIY(ConfiguredPrior):
    r"""CLIP's embeddings of crops of three sizes, and FOUND's saliency for the background.

    The image is squashed to a square of :data:`SIDE` pixels by OpenCV's bilinear filter. Crops of
    each side of :data:`CROPS` are at half a side's distance; each goes through the whole of CLIP.
    Their cosines to the words, on a grid, are brought to pixels bilinearly, and the mean of the
    three grids is ``x``. With the saliency ``s``, of the image at its own size brought to the
    square, the probabilities are

    .. math:: \mathrm{softmax}(\tau \, x_k s_k), \quad
              s_k = 1 - s \text{ for the background}, s \text{ for the rest}

    The authors' ``τ`` is 1, which no labels depend on; here it is ``logit_scale``. Where no label
    is the background ``s_k`` is 1. A label that has synonyms has the largest cosine of them; the
    authors have one word a class. They evaluate on truth of a short side of 448 pixels.

    Args:
        clip: sees the crops.
        saliency: finds the background.
        config: which label is the background, and ``τ``.
    """

    def __init__(self, clip: CLIPBackbone, saliency: Saliency, config: PriorConfig | None = None):
        self.clip = clip
        self.saliency = saliency
        self.config = PriorConfig("clip-diy") if config is None else config

    @classmethod
    def load(
        cls, config: PriorConfig, clip: str, *, device: torch.device, dtype: torch.dtype
    ) -> "CLIPDIY":
        """See :class:`~nerve_fast.priors.registry.System`."""
        weights = config.network("found")
        dino = DINOBackbone.from_pretrained(
            config.network("dino"), device=device, dtype=dtype, option="prior network dino"
        )
        saliency = Saliency.from_file(weights, dino)
        return cls(CLIPBackbone.from_pretrained(clip, device=device, dtype=dtype), saliency, config)

    @property
    def networks(self) -> Sequence[Any]:
        """See :meth:`ConfiguredPrior.networks`."""
        return (self.clip, self.saliency)

    def memory(self, view: WholeImage, images: int, words: int) -> int:
        """See :meth:`Prior.memory`: crops in CLIP, the image in DINO, and the maps."""
        vision = self.clip.model.config.vision_config
        tokens = BATCH * (1 + (vision.image_size // vision.patch_size) ** 2)
        activations = ACTIVATIONS * tokens * vision.hidden_size * self.clip.model.dtype.itemsize
        maps = 4 * (3 * words * images + 2) * SIDE**2
        return max(activations, self.saliency.memory(view.size)) + maps

    def encoded_memory(self, view: WholeImage, images: int) -> int:
        """See :meth:`Prior.encoded_memory`."""
        crops = sum(_count(side) ** 2 for side in CROPS)
        return 4 * images * (crops * self.clip.model.config.projection_dim + SIDE**2)

    def check_labels(self, classes: Sequence[Sequence[str]], *, progress: bool = False) -> None:
        """Encode the words, which later calls take from memory; see :meth:`Prior.check_labels`."""
        words = [word for words in classes for word in words]
        self.clip.encode_words(words, self.config.prompts, progress=progress)

    @torch.no_grad()
    def encode(
        self,
        images: Sequence[Image.Image],
        view: WholeImage | None = None,
        advance: Callable[[int], None] = lambda windows: None,
    ) -> Cropped:
        """See :meth:`Prior.encode`."""
        features: list[list[Tensor]] = [[] for _ in CROPS]
        saliency = []
        for image in images:
            square = opencv_bilinear(image, (SIDE, SIDE))
            for found, side in zip(features, CROPS, strict=True):
                found.append(self._features(square, side))
            salient = self.saliency(image)
            # Between the four pixels around a place, as OpenCV's.
            salient = interpolate(salient[None, None], (SIDE, SIDE), mode="bilinear")
            saliency.append(salient[0, 0])
            advance(1)
        return Cropped([torch.stack(found) for found in features], torch.stack(saliency))

    def _features(self, square: Image.Image, side: int) -> Tensor:
        """Embeddings of the crops of a square: ``(n, n, E)``."""
        clip, count = self.clip, _count(side)
        starts = [number * (side // 2) for number in range(count)]
        size = (clip.image_size, clip.image_size)
        crops = [
            clip.pixels(clip.resized(square.crop((x, y, x + side, y + side)), size))
            for y in starts
            for x in starts
        ]
        pooled = [
            clip.model.vision_model(torch.stack(crops[first : first + BATCH])).pooler_output
            for first in range(0, len(crops), BATCH)
        ]
        features = clip.model.visual_projection(torch.cat(pooled))
        return normalize(features.float(), dim=-1).unflatten(0, (count, count))

    @torch.no_grad()
    def probabilities(self, encoded: Cropped, classes: Sequence[Sequence[str]]) -> Tensor:
        """``(B, K, SIDE, SIDE)`` float32."""
        place, _ = apart(self.config.background, classes)
        words = [word for words in classes for word in words]
        text = self.clip.encode_words(words, self.config.prompts)
        grids = [
            interpolate((grid @ text.T).permute(0, 3, 1, 2), (SIDE, SIDE), mode="bilinear")
            for grid in encoded.features
        ]
        scores = best_words(torch.stack(grids).mean(0), classes)
        if place is not None:
            salient = encoded.saliency[:, None].expand_as(scores).clone()
            salient[:, place] = 1 - encoded.saliency
            scores = scores * salient
        return torch.softmax(self.config.logit_scale * scores, dim=1)


def _count(side: int) -> int:
    """The number of crops along a side of the square."""
    return 2 * (SIDE - side) // side + 1
