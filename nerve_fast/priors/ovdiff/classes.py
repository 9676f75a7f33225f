"""Which labels an image seems to hold: CLIP's choice among all sets of the likeliest."""

import itertools
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.imaging.images import to_tensor
from nerve_fast.priors.ovdiff.extractors import resized

PROMPT = ("a {}",)

MOST = 10
"""Labels of which all sets are looked at."""

SEEN = 512
"""Side of the square that the image is squashed to before CLIP's own size."""

BATCH = 32
"""Prompts that go through CLIP at a time."""


@torch.no_grad()
def present(clip: CLIPBackbone, image: Image.Image, names: Sequence[str]) -> list[int]:
    """The labels that the image seems to hold.

    Those stay whose softmax of cosines, without CLIP's scale, is at least that of chance, the
    :data:`MOST` likeliest of them. Each set of these makes a prompt, "a cat and a dog"; the one
    that is nearest to the image says which labels there are.

    Args:
        clip: the network.
        image: RGB.
        names: of the labels, ``K``.

    Returns:
        Numbers of names, one or more unless there are none.
    """
    if not names:
        return []
    seen = _embedding(clip, image)
    cosines = seen @ clip.encode_words(names, PROMPT).T
    probabilities = cosines.softmax(-1)
    likely = (probabilities >= 1 / len(names)).nonzero()[:, 0]
    if not len(likely):
        likely = cosines.topk(min(MOST, len(names))).indices
    if len(likely) > MOST:
        likely = likely[probabilities[likely].topk(MOST).indices]
    found = likely.tolist()
    sets = [
        some for count in range(1, len(found) + 1) for some in itertools.combinations(found, count)
    ]
    prompts = [" and ".join(PROMPT[0].format(names[k]) for k in some) for some in sets]
    nearness = torch.cat(
        [
            _texts(clip, prompts[first : first + BATCH]) @ seen
            for first in range(0, len(prompts), BATCH)
        ]
    )
    return sorted(sets[int(nearness.argmax())])


def _embedding(clip: CLIPBackbone, image: Image.Image) -> Tensor:
    square = to_tensor(image.resize((SEEN, SEEN), Image.Resampling.LANCZOS))
    pixels = (resized(square, (clip.image_size,) * 2) - clip.image_mean) / clip.image_std
    pooled = clip.model.vision_model(pixels[None].to(clip.device, clip.model.dtype)).pooler_output
    return normalize(clip.model.visual_projection(pooled)[0].float(), dim=-1)


def _texts(clip: CLIPBackbone, prompts: list[str]) -> Tensor:
    """Embeddings of prompts, which are cut where CLIP's context ends."""
    tokens = clip.tokenizer(
        prompts, padding=True, truncation=True, max_length=clip.context, return_tensors="pt"
    )
    return normalize(clip.embed(tokens.to(clip.device)).float(), dim=-1)
