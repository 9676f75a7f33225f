"""From an image and words to a distribution over labels at each place."""

import dataclasses
import math
import numbers
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.errors import InputError
from nerve_fast.images import model_size
from nerve_fast.priors.maskclip import maskclip
from nerve_fast.priors.naclip import naclip

READ_OUTS = {"maskclip": maskclip, "naclip": naclip}
"""The priors by name."""

WINDOW_BATCH = 16
"""Windows that go through CLIP at a time."""


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """How the prior is computed.

    Args:
        name: ``naclip`` or ``maskclip``.
        resolution: short side of the image that CLIP sees, in pixels; ``None`` is 1.5 times the
            size the checkpoint was trained at, which is the field's 336 for 224.
        window: side of the sliding window, in pixels, a multiple of CLIP's patch; ``None`` shows
            CLIP the whole image at once.
        stride: step of the window, in pixels; ``None`` is half the window.
        logit_scale: cosine similarities are multiplied by this before the softmax over words.

    Raises:
        InputError: a value is out of its range; a ``ValueError``.
    """

    name: str = "naclip"
    resolution: int | None = None
    window: int | None = None
    stride: int | None = None
    logit_scale: float = 40.0

    def __post_init__(self):
        if self.name not in READ_OUTS:
            raise InputError(f"prior is {self.name!r}; expected one of {', '.join(READ_OUTS)}")
        for field in ("resolution", "window", "stride"):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"prior {field} is {value!r}; expected a number of pixels above 0")
        if self.stride is not None and (self.window is None or self.stride > self.window):
            raise InputError(
                f"prior stride is {self.stride} and window is {self.window}; expected a stride no "
                "longer than the window"
            )
        if not isinstance(self.logit_scale, numbers.Real) or not 0 < self.logit_scale < math.inf:
            raise InputError(f"logit scale is {self.logit_scale!r}; expected a number above 0")


@torch.no_grad()
def label_probabilities(
    clip: CLIPBackbone,
    image: Image.Image,
    classes: Sequence[Sequence[str]],
    config: PriorConfig,
) -> Tensor:
    """CLIP's probability of each label at each place of the image.

    Softmax over all words, synonyms included; a label's probability is that of its likeliest
    synonym; then the labels are made to sum to 1.

    Args:
        image: RGB.
        classes: the words of each of the ``K`` labels.

    Returns:
        ``(K, h, w)`` float32: on CLIP's patches, or with windows on the pixels that CLIP saw.
    """
    words = [word for synonyms in classes for word in synonyms]
    text = clip.encode_words(words)  # (words, E)
    resolution = config.resolution or clip.image_size * 3 // 2
    pixels = clip.pixels(image, model_size(image.size, resolution, clip.patch))
    if config.window is None:
        features = clip.patch_features(pixels[None], READ_OUTS[config.name])
        similarity = (features[0] @ text.T).permute(2, 0, 1)  # (words, h, w)
    else:
        similarity = _windowed_similarity(clip, pixels, text, config)
    probabilities = torch.softmax(config.logit_scale * similarity, dim=0)
    labels = probabilities.split([len(synonyms) for synonyms in classes])
    best = torch.stack([synonyms.amax(0) for synonyms in labels])
    return best / best.sum(0)


def _windowed_similarity(
    clip: CLIPBackbone, pixels: Tensor, text: Tensor, config: PriorConfig
) -> Tensor:
    """Cosine similarities averaged over sliding windows, ``(words, H, W)`` on the pixels."""
    if config.window % clip.patch:
        raise InputError(
            f"prior window is {config.window}; expected a multiple of CLIP's patch, {clip.patch}"
        )
    height, width = pixels.shape[-2:]
    tall, wide = min(config.window, height), min(config.window, width)
    stride = config.stride or config.window // 2
    corners = [
        (top, left)
        for top in window_starts(height, config.window, stride)
        for left in window_starts(width, config.window, stride)
    ]
    total = pixels.new_zeros(len(text), height, width, dtype=torch.float32)
    count = pixels.new_zeros(height, width, dtype=torch.float32)
    for first in range(0, len(corners), WINDOW_BATCH):
        batch = corners[first : first + WINDOW_BATCH]
        crops = torch.stack([pixels[:, y : y + tall, x : x + wide] for y, x in batch])
        features = clip.patch_features(crops, READ_OUTS[config.name])
        similarity = (features @ text.T).permute(0, 3, 1, 2)
        similarity = interpolate(similarity, (tall, wide), mode="bilinear", align_corners=False)
        for (y, x), crop in zip(batch, similarity, strict=True):
            total[:, y : y + tall, x : x + wide] += crop
            count[y : y + tall, x : x + wide] += 1
    return total / count


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along a side: every ``stride``, the last one shifted inward to fit.

    A side shorter than the window is one smaller window.
    """
    windows = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride, length - window), 0) for i in range(windows)]


def to_tokens(probabilities: Tensor, grid: tuple[int, int]) -> Tensor:
    """The prior ``G``: probabilities, not similarities, resampled to the tokens and renormalised.

    Args:
        probabilities: ``(K, h', w')``.
        grid: ``(h, w)`` of the tokens.

    Returns:
        ``(N, K)`` float32, rows sum to 1.
    """
    resampled = interpolate(
        probabilities[None], grid, mode="bilinear", align_corners=False, antialias=True
    )[0]
    prior = resampled.flatten(1).T
    return prior / prior.sum(-1, keepdim=True)
