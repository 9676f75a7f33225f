"""From a word to its prototypes: images are made, masked and looked at, once a machine."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nerve_fast.backbones import text_to_image
from nerve_fast.backbones.sam import SegmentAnything, masks_of, sam_memory
from nerve_fast.backbones.tensor_cache import TensorCache
from nerve_fast.backbones.text_to_image import TextToImage
from nerve_fast.dispatch.machine import free_memory
from nerve_fast.errors import InputError
from nerve_fast.imaging.images import to_tensor
from nerve_fast.priors.ovdiff.extractors import LAYER, Extractor
from nerve_fast.priors.ovdiff.masks import BACKGROUND, FOREGROUND, at_pixels, support_masks
from nerve_fast.priors.ovdiff.prototypes import CLUSTERS, Gathered
from nerve_fast.utils.provenance import version
from nerve_fast.utils.units import format_bytes

SEED_OF_IMAGES, SEED_OF_NOISE = 42, 43
"""Of the images that are made, and of the noise that is added where features are taken."""

MOST_FILES = 1_000
"""Words whose prototypes are kept on disk, those of all models together: 5 MB a word for Stable
Diffusion 1.5, CLIP ViT-B/16 and DINO ViT-B/8, 5 GB in all."""


@dataclasses.dataclass(frozen=True)
class Unidentified:
    """Stands for a detector that does not say what tells it from others.

    Attributes:
        identity: its kind, and a token that no other has.
    """

    identity: str


@dataclasses.dataclass(frozen=True, eq=False)
class Support:
    """What makes prototypes of words.

    Attributes:
        diffusion: makes images.
        detector: gives masks of things in an RGB image, whatever they are; a ``(H, W)`` array or
            tensor each, or a mapping that has them as ``"masks"``. What it makes is kept on disk
            if it says by an ``identity`` what tells it from others.
        extractors: look at the images.
        templates: of prompts.
        count: of images.
        networks: all that have a part in it, each with an ``identity`` but perhaps the detector.
        cache: folder for what is kept.
    """

    diffusion: TextToImage
    detector: Callable[[Image.Image], Any]
    extractors: Sequence[Extractor]
    templates: tuple[str, ...]
    count: int
    networks: Sequence[Any]
    cache: Path

    def memory(self) -> dict[torch.device, int]:
        """Bytes that making prototypes takes of each device at most: one thing after the other.

        What is gathered lies on the CPU, and k-means has a copy of it.
        """
        size, device = self.diffusion.size, self.diffusion.device
        gathered = 2 * 4 * self.count * self.diffusion.channels * self.diffusion.grid**2
        looking = max(one.memory(size, size, size) for one in self.extractors)
        needs = {device: max(self.diffusion.making_memory(self.count), looking)}
        others = ((self.detecting, sam_memory((size, size))), (torch.device("cpu"), gathered))
        for place, needed in others:
            needs[place] = max(needs.get(place, 0), needed)
        return needs

    @property
    def detecting(self) -> torch.device:
        """Where the detector works; of one that is no SAM, where the others do."""
        if isinstance(self.detector, SegmentAnything):
            return self.detector.device
        return self.diffusion.device

    def kept(self) -> TensorCache | None:
        """Where prototypes are kept; ``None`` where the detector cannot be told from others."""
        if getattr(self.detector, "identity", None) is None:
            return None
        packages = ("nerve-fast", "torch", "diffusers", "transformers", "scikit-learn")
        devices = [one.device for one in self.networks if one is not self.detector]
        model = {
            "networks": [network.identity for network in self.networks],
            "templates": self.templates,
            "negative": text_to_image.NEGATIVE,
            "made": [self.count, text_to_image.STEPS, text_to_image.GUIDANCE],
            "seen": [text_to_image.TIMESTEP, SEED_OF_IMAGES, SEED_OF_NOISE, CLUSTERS],
            "masks": [FOREGROUND, BACKGROUND],
            "layer": LAYER,
            # Dtypes are among the networks' identities.
            "computed": [device.type for device in (*devices, self.detecting)],
            "versions": [version(name) for name in packages],
        }
        return TensorCache(
            self.cache / "prototypes", json.loads(json.dumps(model)), "prototypes", MOST_FILES, 1
        )

    def check_memory(self) -> None:
        """Refuse to begin what the memory does not suffice for.

        Raises:
            InputError: saying what it takes.
        """
        for place, needed in self.memory().items():
            if needed > (free := free_memory(place)):
                raise InputError(
                    f"making prototypes of {self.count} support images takes up to "
                    f"{format_bytes(needed)} of the memory of {place.type}, and "
                    f"{format_bytes(free)} are free; take fewer images, or free some memory"
                )

    def kept_or_made(
        self,
        word: str,
        kept: TensorCache | None,
        advance: Callable[[int], None] = lambda images: None,
        *,
        patient: bool,
    ) -> dict[str, Tensor] | None:
        """Prototypes of a word, made unless another process has made them in the meantime.

        Args:
            word: of a label.
            kept: where they are kept.
            advance: called with the number of images just made.
            patient: wait for another process that is making them.

        Returns:
            As :meth:`made`; ``None`` where another process is making them.

        Raises:
            InputError: as :meth:`made`.
        """
        if kept is None:
            return self.made(word, advance)
        with kept.claimed(word, patient=patient) as mine:
            if not mine:
                return None
            found = kept.load(word)
            if found is None:
                found = self.made(word, advance)
                kept.save(word, found)
            else:
                advance(self.count)
            return found

    @torch.no_grad()
    def made(
        self, word: str, advance: Callable[[int], None] = lambda images: None
    ) -> dict[str, Tensor]:
        """Prototypes of a word, made anew.

        Args:
            word: of a label.
            advance: called with the number of images just made.

        Returns:
            For each extractor ``"NAME foreground"`` and ``"NAME background"``, ``(P, C)`` float32
            on the CPU.

        Raises:
            InputError: no image shows the word, or a mask of the detector has another size.
        """
        images, maps = self.diffusion.make(
            word, self.templates, self.count, SEED_OF_IMAGES, advance
        )
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        attributions = at_pixels(maps, self.diffusion.size)
        masks = [
            support_masks([mask.cpu() for mask in masks_of(self.detector, picture)], attribution)
            for picture, attribution in zip(pictures, attributions, strict=True)
        ]
        found = {}
        for extractor in self.extractors:
            gathered = Gathered()
            for picture, (foreground, background) in zip(pictures, masks, strict=True):
                sampling, noise = (torch.Generator().manual_seed(SEED_OF_NOISE) for _ in range(2))
                pixels = whole(picture, extractor.patch)
                gathered.add(extractor.features(pixels, sampling, noise), foreground, background)
            pair = gathered.prototypes(word)
            for kind, prototypes in zip(("foreground", "background"), pair, strict=True):
                found[f"{extractor.name} {kind}"] = prototypes
        return found


def whole(image: Image.Image, patch: int) -> Tensor:
    """The pixels of an image whose sides are brought to whole patches: ``(3, H, W)``."""
    width, height = (max(round(side / patch), 1) * patch for side in image.size)
    size = (width, height)
    return to_tensor(image if size == image.size else image.resize(size, Image.Resampling.LANCZOS))
