"""From an image and words to a distribution over labels at each place."""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Callable, Sequence

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
            CLIP the whole image at once. Where neither is set and the diffusion model sees the
            image in tiles, CLIP sees it as much larger as that does, in windows.
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


@dataclasses.dataclass(frozen=True)
class View:
    """How CLIP sees an image.

    Attributes:
        size: ``(width, height)`` in pixels that the image is resized to.
        tops, lefts: where windows start, in pixels.
        window: ``(height, width)`` of a window.
        unit: pixels, along a side, of a cell on which windows are averaged.
    """

    size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    window: tuple[int, int]
    unit: int

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)


def view_of(
    clip: CLIPBackbone,
    size: tuple[int, int],
    config: PriorConfig,
    magnified: tuple[int, int] | None = None,
) -> View:
    """How CLIP sees an image of ``size = (width, height)``.

    Args:
        magnified: at what size it should see it where ``config`` says neither resolution nor
            window, before rounding; in windows as large as the images that it usually sees whole.

    Raises:
        InputError: ``config.window`` is no multiple of the patch.
    """
    usual = clip.image_size * 3 // 2 // clip.patch * clip.patch
    if magnified is not None and config.resolution is None and config.window is None:
        size = model_size(magnified, None, clip.patch)
        stride = max(usual // 2 // clip.patch, 1) * clip.patch
        return _windows(size, usual, stride, clip.patch)
    resolution = config.resolution or clip.image_size * 3 // 2
    size = model_size(size, resolution, clip.patch)
    if config.window is None:
        return View(size, (0,), (0,), size[::-1], clip.patch)
    if config.window % clip.patch:
        raise InputError(
            f"prior window is {config.window}; expected a multiple of CLIP's patch, {clip.patch}"
        )
    # The field's protocol: similarities are brought to pixels, and averaged there.
    return _windows(size, config.window, config.stride or config.window // 2, 1)


def _windows(size: tuple[int, int], window: int, stride: int, unit: int) -> View:
    width, height = size
    return View(
        size,
        tuple(window_starts(height, window, stride)),
        tuple(window_starts(width, window, stride)),
        (min(window, height), min(window, width)),
        unit,
    )


@torch.no_grad()
def label_probabilities(
    clip: CLIPBackbone,
    images: Sequence[Image.Image],
    classes: Sequence[Sequence[str]],
    config: PriorConfig,
    *,
    view: View | None = None,
    batch_size: int = WINDOW_BATCH,
    advance: Callable[[int], None] = lambda windows: None,
) -> Tensor:
    """CLIP's probability of each label at each place of images.

    Softmax over all words, synonyms included; a label's probability is that of its likeliest
    synonym; then the labels are made to sum to 1. Where windows overlap, similarities are averaged.

    Args:
        images: ``B`` of them, RGB, all of one shape.
        classes: the words of each of the ``K`` labels.
        view: how CLIP sees them; ``None`` is as ``config`` says.
        batch_size: windows that go through CLIP at a time.
        advance: called with the number of windows just done.

    Returns:
        ``(B, K, h, w)`` float32: on CLIP's patches, or with windows that ``config`` asks for on the
        pixels that CLIP saw.
    """
    words = [word for synonyms in classes for word in synonyms]
    text = clip.encode_words(words)  # (words, E)
    view = view or view_of(clip, images[0].size, config)
    images = [clip.resized(image, view.size) for image in images]
    (tall, wide), unit = view.window, view.unit
    width, height = (side // unit for side in view.size)
    total = text.new_zeros(len(images), len(words), height, width)
    count = text.new_zeros(height, width)
    jobs = list(itertools.product(range(len(images)), view.tops, view.lefts))
    for first in range(0, len(jobs), batch_size):
        batch = jobs[first : first + batch_size]
        crops = [images[i].crop((x, y, x + wide, y + tall)) for i, y, x in batch]
        pixels = torch.stack([clip.pixels(crop) for crop in crops])
        features = clip.patch_features(pixels, READ_OUTS[config.name])
        similarity = (features @ text.T).permute(0, 3, 1, 2)
        size = (tall // unit, wide // unit)
        if unit == 1:
            similarity = interpolate(similarity, size, mode="bilinear", align_corners=False)
        for (image, y, x), one in zip(batch, similarity, strict=True):
            rows = slice(y // unit, y // unit + size[0])
            columns = slice(x // unit, x // unit + size[1])
            total[image, :, rows, columns] += one
            if image == 0:
                count[rows, columns] += 1
        advance(len(batch))
    probabilities = torch.softmax(config.logit_scale * (total / count), dim=1)
    labels = probabilities.split([len(synonyms) for synonyms in classes], dim=1)
    best = torch.stack([synonyms.amax(1) for synonyms in labels], dim=1)
    return best / best.sum(1, keepdim=True)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along a side: every ``stride``, the last one shifted inward to fit.

    A side shorter than the window is one smaller window.
    """
    windows = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride, length - window), 0) for i in range(windows)]


def to_tokens(probabilities: Tensor, grid: tuple[int, int]) -> Tensor:
    """The prior ``G``: probabilities, not similarities, resampled to the tokens and renormalised.

    Args:
        probabilities: ``(B, K, h', w')``.
        grid: ``(h, w)`` of the tokens.

    Returns:
        ``(B, N, K)`` float32, rows sum to 1.
    """
    resampled = interpolate(
        probabilities, grid, mode="bilinear", align_corners=False, antialias=True
    )
    prior = resampled.flatten(2).mT
    return prior / prior.sum(-1, keepdim=True)
