"""Masks of all things in an image, by a SAM of transformers (Kirillov et al., ICCV 2023)."""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import SamModel, SamProcessor

from nerve_fast.backbones.text_cache import fingerprint
from nerve_fast.errors import InputError

DEFAULT_MASKS = "facebook/sam-vit-base"
"""The mask generator unless another is named (Apache-2.0)."""

GENERATOR_BYTES = 4 << 30
"""What a SAM takes besides its masks: ViT-H's weights, and an image on its way."""

POINTS = 32
"""Points along a side of the grid that the model is asked at."""

AT_A_TIME = 16
"""Points that go through the mask decoder together."""

LEAST_IOU, LEAST_STABILITY, OFFSET = 0.88, 0.95, 1.0
"""A mask stays whose predicted quality is above the first, and whose share of what it has at a
threshold lower by the offset, at one higher by it, is the second or more."""

MOST_OVERLAP = 0.7
"""Of two masks whose boxes overlap more, as intersection over union, the better stays."""


class SegmentAnything:
    """SAM's automatic masks, with the authors' settings and without crops of the image.

    transformers' own pipeline for this needs a torchvision made for the installed torch; what it
    takes from there, the choice among boxes that overlap, is here.

    Args:
        model, processor: of transformers.
    """

    def __init__(self, model: SamModel, processor: SamProcessor):
        self.model = model.eval().requires_grad_(False)
        self.processor = processor

    @classmethod
    @functools.lru_cache(maxsize=1)
    def from_pretrained(cls, source: str, *, device: torch.device) -> "SegmentAnything":
        """Load a SAM; the one used last is kept.

        Args:
            source: hub id or local folder in transformers layout.
            device: of the model.

        Raises:
            InputError: it is not available, or is no SAM.
        """
        try:
            model = SamModel.from_pretrained(source, trust_remote_code=False)
            processor = SamProcessor.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{source}: is no mask generator that can be loaded; expected the hub id or folder "
                f"of a SAM ({str(error).splitlines()[0]})"
            ) from error
        return cls(model.to(device), processor)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @functools.cached_property
    def identity(self) -> str:
        """The settings, and a digest of the weights."""
        settings = [POINTS, LEAST_IOU, LEAST_STABILITY, OFFSET, MOST_OVERLAP]
        return f"SAM {json.dumps(settings)} sha256 {fingerprint(self.model)}"

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> list[Tensor]:
        """``(H, W)`` bool each, the best first; none where nothing is sure enough."""
        device = self.device
        places = (torch.arange(POINTS) + 0.5) / POINTS
        grid = torch.cartesian_prod(places * image.width, places * image.height)
        seen = self.processor(image, input_points=[grid[:, None].tolist()], return_tensors="pt")
        embedding = self.model.get_image_embeddings(seen.pixel_values.to(device))
        masks, scores, boxes = [], [], []
        for points in seen.input_points.split(AT_A_TIME, dim=1):
            # In float32 before it leaves the CPU, as some devices have no float64.
            out = self.model(image_embeddings=embedding, input_points=points.float().to(device))
            (logits,) = self.processor.image_processor.post_process_masks(
                out.pred_masks, seen.original_sizes, seen.reshaped_input_sizes, binarize=False
            )
            logits, iou = logits.flatten(0, 1), out.iou_scores.flatten()
            inner, outer = ((logits > side).sum((1, 2)) for side in (OFFSET, -OFFSET))
            found = logits > 0
            keep = (iou > LEAST_IOU) & (inner >= LEAST_STABILITY * outer) & found.any(2).any(1)
            # One by one, as a mask takes a byte a pixel and most do not stay.
            masks += [mask.cpu() for mask in found[keep]]
            scores += iou[keep].tolist()
            boxes += [_box(mask) for mask in found[keep]]
        return [masks[i] for i in _apart(boxes, scores)]


def sam_memory(image_size: tuple[int, int]) -> int:
    """Bytes that a SAM and its masks of an image of ``(width, height)`` pixels take."""
    return GENERATOR_BYTES + (12 * 3 * AT_A_TIME + POINTS**2) * image_size[0] * image_size[1]


def masks_of(generate: Callable[[Image.Image], Any], image: Image.Image) -> list[Tensor]:
    """The masks that a generator gives of an image, ``(H, W)`` bool each.

    Args:
        generate: gives masks, arrays or tensors ``(H, W)`` of which what is not 0 belongs to the
            mask, or a mapping that has them as ``"masks"``, as transformers' pipelines do.
        image: RGB.

    Raises:
        InputError: a mask has another size than the image.
    """
    found = generate(image)
    if isinstance(found, Mapping):
        found = found["masks"]
    return [_checked(mask, (image.height, image.width)) for mask in found]


def _checked(mask: Any, size: tuple[int, int]) -> Tensor:
    given = mask if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
    if tuple(given.shape) != size:
        raise InputError(
            f"a mask has shape {tuple(given.shape)}; expected {size}, as the image has "
            f"{size[1]} × {size[0]} pixels"
        )
    return given != 0


def _box(mask: Tensor) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, the last two outside."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _apart(boxes: list[tuple[int, int, int, int]], scores: list[float]) -> list[int]:
    """The boxes, the best first, that overlap none that is better too much."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(_overlap(boxes[i], boxes[j]) <= MOST_OVERLAP for j in kept):
            kept.append(i)
    return kept


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection over union."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - width * height
    return width * height / union
