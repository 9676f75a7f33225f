"""Region labels: each mask of a mask generator gets the label of most of its pixels."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nerve_fast.backbones.sam import DEFAULT_MASKS, SegmentAnything, masks_of, sam_memory
from nerve_fast.backbones.source import GraphFeatures
from nerve_fast.imaging.resampling import likeliest, to_pixels
from nerve_fast.refiners.checks import check_maps
from nerve_fast.refiners.registry import registered


@registered("regions", needs_graph=False)
@dataclasses.dataclass(frozen=True, eq=False)
class Regions:
    """The mode of labels inside masks: what a whole object is called, all its pixels are.

    Each pixel has its likeliest label first. In each mask, the largest first, all pixels get the
    label that most of its pixels had; so a mask within another has the last word. Pixels of no mask
    keep what they had. CorrCLIP (Zhang et al., 2024) reports 1.9 points for it.

    Args:
        masks: gives the masks of an image. Either a hub id or a folder of a SAM, which runs where
            the maps are, see :class:`~nerve_fast.backbones.sam.SegmentAnything`, or any callable
            that gives masks of an RGB image, ``(H, W)`` each, transformers' pipelines for it among
            them.

    Raises:
        TypeError: ``masks`` is neither.
    """

    masks: str | Callable[[Image.Image], Any] = DEFAULT_MASKS

    def __post_init__(self):
        if not callable(self.masks) and not isinstance(self.masks, str):
            raise TypeError(
                f"masks is a {type(self.masks).__name__}; expected the hub id or folder of a SAM, "
                "or a callable that gives masks of an image"
            )

    def __call__(
        self, image: Image.Image, probabilities: Tensor, graph: GraphFeatures | None = None
    ) -> Tensor:
        """Probabilities ``(K, h, w)`` to ``(K, H, W)``; inside a mask a single label has 1.

        Raises:
            InputError: the generator is not available, or gives a mask of another size.
        """
        check_maps(probabilities)
        size = (image.height, image.width)
        generate = self.masks
        if isinstance(generate, str):
            generate = SegmentAnything.from_pretrained(generate, device=probabilities.device)
        masks = masks_of(generate, image)
        labels = likeliest(probabilities.float(), size)
        refined = to_pixels(probabilities.float(), size)
        for label, mask in modes(labels, masks, len(probabilities)):
            refined[:, mask] = 0
            refined[label, mask] = 1
        return refined

    def memory(self, labels: int, image_size: tuple[int, int], tokens: int) -> int:
        """Bytes of the labels at the image's pixels, and of SAM where it gives the masks."""
        width, height = image_size
        own = 0
        if isinstance(self.masks, str):
            own = sam_memory(image_size)
        return own + (8 * labels + 32) * width * height


def modes(labels: Tensor, masks: list[Tensor], count: int) -> Iterable[tuple[int, Tensor]]:
    """The commonest label of each mask that is not empty, with the mask, the largest first.

    Args:
        labels: ``(H, W)`` int64, below ``count``; negative where there is none, which do not count.
        masks: ``(H, W)`` bool each.
        count: of the labels.
    """
    for mask in sorted(masks, key=lambda mask: -int(mask.sum())):
        mask = mask.to(labels.device)
        inside = labels[mask]
        inside = inside[inside >= 0]
        if len(inside):
            yield int(torch.bincount(inside, minlength=count).argmax()), mask
