"""From an image and words to a distribution over labels at each place."""

import itertools
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.errors import InputError
from nerve_fast.priors.config import PriorConfig, read_out_of
from nerve_fast.priors.views import View, resized, view_of

WINDOW_BATCH = 16
"""Windows that go through CLIP at a time."""


@torch.no_grad()
def similarities(
    clip: CLIPBackbone,
    images: Sequence[Image.Image],
    words: Sequence[str],
    config: PriorConfig,
    *,
    view: View | None = None,
    batch_size: int = WINDOW_BATCH,
    advance: Callable[[int], None] = lambda windows: None,
) -> Tensor:
    """How alike CLIP finds each place of images and each word: cosines.

    Where windows overlap they are averaged.

    Args:
        images: ``B`` of them, RGB, all of one shape.
        words: names of things.
        view: how CLIP sees them; ``None`` is as ``config`` says.
        batch_size: windows that go through CLIP at a time.
        advance: called with the number of windows just done.

    Returns:
        ``(B, words, h, w)`` float32: on the pixels that CLIP saw with the protocol ``mmseg`` and
        with windows that ``config`` asks for; else on CLIP's patches, or of an image seen whole on
        the patches of the prior's proxy.

    Raises:
        InputError: a word is too long, or the proxy cannot be had.
    """
    text = clip.encode_words(words)  # (words, E)
    read_out = read_out_of(config, clip)
    view = view or view_of(clip, images[0].size, config)
    images = [resized(clip, image, view.size, config) for image in images]
    (tall, wide), unit = view.window, view.unit
    jobs = list(itertools.product(range(len(images)), view.tops, view.lefts))
    total = count = None
    for first in range(0, len(jobs), batch_size):
        batch = jobs[first : first + batch_size]
        crops = [images[i].crop((x, y, x + wide, y + tall)) for i, y, x in batch]
        pixels = torch.stack([clip.pixels(crop) for crop in crops])
        features = clip.patch_features(pixels, read_out, config.position_offset)
        similarity = (features @ text.T).permute(0, 3, 1, 2)
        # Windows meet on cells that all of them have; alone, one keeps what it has.
        cells = (tall // unit, wide // unit)
        if unit > 1 and len(view) == 1:
            cells = tuple(similarity.shape[-2:])
        if total is None:
            whole = cells if len(view) == 1 else (view.size[1] // unit, view.size[0] // unit)
            total = text.new_zeros(len(images), len(words), *whole)
            count = text.new_zeros(whole)
        for (image, y, x), one in zip(batch, similarity, strict=True):
            if cells != tuple(one.shape[-2:]):
                one = interpolate(one[None], cells, mode="bilinear", align_corners=False)[0]
            rows = slice(y // unit, y // unit + cells[0])
            columns = slice(x // unit, x // unit + cells[1])
            total[image, :, rows, columns] += one
            if image == 0:
                count[rows, columns] += 1
        advance(len(batch))
    return total.div_(count)


def check_finite(values: Tensor, clip: CLIPBackbone) -> None:
    """Raise an :class:`InputError` where CLIP's values overflowed.

    Not a part of :func:`similarities`, as it waits for the GPU, where the pipeline goes on to the
    UNet.
    """
    if not torch.isfinite(values).all():
        raise InputError(
            f"CLIP gave values that are not finite in {clip.model.dtype}: take another dtype "
            "(bfloat16 or float32), or check the model's weights"
        )


def probabilities_of(
    similarity: Tensor, classes: Sequence[Sequence[str]], logit_scale: float
) -> Tensor:
    """The probability of each label at each place.

    Softmax over all words, synonyms included; a label's probability is that of its likeliest
    synonym; then the labels are made to sum to 1.

    Args:
        similarity: ``(B, words, h, w)``, of the words of all labels one after another.
        classes: the words of each of the ``K`` labels.
        logit_scale: similarities are multiplied by this.

    Returns:
        ``(B, K, h, w)``.
    """
    probabilities = torch.softmax(logit_scale * similarity, dim=1)
    labels = probabilities.split([len(synonyms) for synonyms in classes], dim=1)
    best = torch.stack([synonyms.amax(1) for synonyms in labels], dim=1)
    return best / best.sum(1, keepdim=True)


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

    :func:`similarities` of the words of ``classes``, and :func:`probabilities_of` them.

    Returns:
        ``(B, K, h, w)`` float32, on the grid of the similarities.
    """
    words = [word for synonyms in classes for word in synonyms]
    similarity = similarities(
        clip, images, words, config, view=view, batch_size=batch_size, advance=advance
    )
    return probabilities_of(similarity, classes, config.logit_scale)


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
