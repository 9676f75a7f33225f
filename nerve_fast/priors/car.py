"""CLIP as RNN (Sun et al.: Segment Countless Visual Concepts without Training, CVPR 2024)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.imaging.densecrf import densecrf, densecrf_memory
from nerve_fast.imaging.images import to_tensor
from nerve_fast.priors.config import PriorConfig
from nerve_fast.priors.gradcam import Activations, activations, at_pixels, proposals
from nerve_fast.priors.layers import run
from nerve_fast.priors.prior import ConfiguredPrior, WholeImage
from nerve_fast.priors.probabilities import apart
from nerve_fast.priors.prompting import prompted
from nerve_fast.priors.registry import ACTIVATIONS, Needed, system

BACKGROUND = (
    *("ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river"),
    *("sea", "railway", "railroad", "helmet", "cloud", "house", "mountain", "ocean", "road"),
    *("rock", "street", "valley", "bridge"),
)
"""Names that compete with those of the labels in Grad-CAM and stand for none."""

PLAIN, ORIGAMI = ("{}",), ("a clean origami {}.",)
"""Prompts of Grad-CAM: of labels at first, and of labels that stayed and of the background."""

BATCH = 16
"""Prompted images that go through CLIP at a time."""

MEAN = (122.675, 116.669, 104.008)
"""Taken from the image that the CRF sees, 0 to 255."""

LEAST = 1e-5
"""Probabilities are raised to it before the CRF."""


@system(
    "car",
    clip="openai/clip-vit-base-patch16",
    templates="cliper",
    reads=("background", "stuff", "mask", "confidence", "box", "visual", "visual_stuff"),
    networks={
        "judge": Needed("a CLIP that scores prompted images", "openai/clip-vit-large-patch14")
    },
)
class CaR(ConfiguredPrior):
    """Grad-CAM's proposals, of which a second CLIP lets stay what it recognises, again and again.

    A proposal for each label (:func:`~nerve_fast.priors.gradcam.proposals`) is shown to the judge
    as a visual prompt; the label's score is its softmax over labels of the sum over templates of
    the judge's probabilities. Labels that score no more than ``confidence`` leave, but for the
    best, and it begins anew with the rest, until none leaves. A dense CRF labels the pixels by the
    last proposals, whose background is 1 less the largest.

    Labels that are stuff are found in a pass of their own, with the other labels in the place of
    the background's names, and the others are painted over them.

    As in the public code: the judge's class token is that before its last layer; labels stand for
    themselves in the first round, and in "a clean origami" in the others; the CRF sees the image
    less its mean, modulo 256; where a round proposes nothing at all, the CRF sees the proposals of
    the round before.

    Otherwise than there: each proposal keeps its label then (there the first labels that are left
    take the first proposals), and nothing in the first round is no error but no label; position
    embeddings are not rounded to float16; the lines of the ellipse's polygon are Pillow's, not
    OpenCV's; the CRF's sums are exact. Labels that have synonyms are represented by their first
    word.

    Args:
        clip: makes proposals; the image goes in at its own size, rounded up to whole patches.
        judge: scores them.
        config: thresholds, prompts, which label is the background, and which are stuff.
    """

    def __init__(self, clip: CLIPBackbone, judge: CLIPBackbone, config: PriorConfig | None = None):
        self.clip = clip
        self.judge = judge
        self.config = PriorConfig("car") if config is None else config

    @classmethod
    def load(
        cls, config: PriorConfig, clip: str, *, device: torch.device, dtype: torch.dtype
    ) -> "CaR":
        """See :class:`~nerve_fast.priors.registry.System`."""
        judge = CLIPBackbone.from_pretrained(config.network("judge"), device=device, dtype=dtype)
        return cls(CLIPBackbone.from_pretrained(clip, device=device, dtype=dtype), judge, config)

    @property
    def networks(self) -> Sequence[Any]:
        """See :meth:`ConfiguredPrior.networks`."""
        return (self.clip, self.judge)

    def memory(self, view: WholeImage, images: int, words: int) -> int:
        """See :meth:`Prior.memory`: a layer with its attention, prompts, the CRF, and the maps."""
        vision, judge = (net.model.config.vision_config for net in (self.clip, self.judge))
        tokens = 1 + math.prod(math.ceil(side / vision.patch_size) for side in view.size)
        width = self.clip.model.dtype.itemsize * vision.hidden_size
        layer = ACTIVATIONS * tokens * width
        attention = 4 * (4 + 4 * vision.num_attention_heads) * tokens**2
        shown = BATCH * (1 + (judge.image_size // judge.patch_size) ** 2)
        prompts = ACTIVATIONS * shown * judge.hidden_size * self.judge.model.dtype.itemsize
        kept = 4 * math.prod(view.size) * words * (images + 3)
        return max(layer + attention, prompts, densecrf_memory(words + 1, view.size)) + kept

    def encoded_memory(self, view: WholeImage, images: int) -> int:
        """See :meth:`Prior.encoded_memory`: the images themselves."""
        return 3 * images * math.prod(view.size)

    def check_labels(self, classes: Sequence[Sequence[str]], *, progress: bool = False) -> None:
        """Encode the words, which later calls take from memory; see :meth:`Prior.check_labels`."""
        names = [words[0] for words in apart(self.config.background, classes)[1]]
        for prompts in (PLAIN, ORIGAMI):
            self.clip.encode_words(names, prompts, progress=progress)
        for template in self.config.prompts:
            self.judge.encode_words(names, (template,), progress=progress)

    @torch.no_grad()
    def probabilities(
        self, encoded: Sequence[Image.Image], classes: Sequence[Sequence[str]]
    ) -> Tensor:
        """``(B, K, H, W)`` float32: 1 for the label of a pixel; all alike if it has none.

        A pixel can have none where no label is the background.
        """
        found = self._painted(encoded, classes)
        return torch.where(found.sum(1, keepdim=True) == 0, 1 / len(classes), found)

    def maps(self, images: Sequence[Image.Image], classes: Sequence[Sequence[str]]) -> Tensor:
        """See :meth:`Prior.maps`: a pixel that has no label is 0 in all."""
        return self._painted(images, classes)

    @torch.no_grad()
    def _painted(self, images: Sequence[Image.Image], classes: Sequence[Sequence[str]]) -> Tensor:
        place, _ = apart(self.config.background, classes)
        stuff = set(self.config.stuff)
        passes: tuple[list[int], list[int]] = ([], [])
        for number, words in enumerate(classes):
            if number != place:
                passes[bool(stuff.intersection(words))].append(number)
        things, rest = ([classes[number][0] for number in numbers] for numbers in passes)
        found = []
        for image in images:
            seen = self._seen(image)
            labels = torch.full((image.height, image.width), -1, device=self.clip.device)
            if place is not None:
                labels[:] = place
            for numbers, names, others, prompts in (
                (passes[1], rest, things or BACKGROUND, self.config.visual_stuff),
                (passes[0], things, BACKGROUND, self.config.visual),
            ):
                if numbers:
                    best = self._segmented(image, seen, names, others, prompts)
                    own = torch.tensor([-1, *numbers], device=best.device)[best]
                    labels = torch.where(own < 0, labels, own)
            kinds = torch.arange(len(classes), device=labels.device)
            found.append((labels == kinds[:, None, None]).float())
        return torch.stack(found)

    def _seen(self, image: Image.Image) -> Activations:
        patch = self.clip.patch
        width, height = (math.ceil(side / patch) * patch for side in image.size)
        resized = self.clip.resized(image, (width, height))
        return activations(self.clip, self.clip.pixels(resized)[None])

    def _segmented(
        self,
        image: Image.Image,
        seen: Activations,
        names: Sequence[str],
        others: Sequence[str],
        prompts: tuple[str, ...],
    ) -> Tensor:
        """Which of the names each pixel has, from 1 on, 0 for none: ``(H, W)`` int64."""
        size = (image.height, image.width)
        left, wording, stayed = list(range(len(names))), PLAIN, 0
        competing = self.clip.encode_words(others, ORIGAMI)
        maps, owners = torch.zeros(0), left
        while True:
            text = torch.cat([self.clip.encode_words([names[k] for k in left], wording), competing])
            proposed = at_pixels(proposals(self.clip, seen, text, len(left), self.config.box), size)
            if stayed == 0 or proposed.any():
                maps, owners = proposed, left
            scores = self._scores(image, proposed, [names[k] for k in left], prompts)
            enough = (scores > self.config.confidence).nonzero()[:, 0].tolist()
            staying = enough or [int(scores.argmax())]
            if len(staying) == stayed:
                break
            left, wording, stayed = [left[k] for k in staying], ORIGAMI, len(staying)
        cams = torch.cat([1 - maps.amax(0, keepdim=True), maps]).clamp(min=LEAST)
        pixels = 255 * to_tensor(image) - torch.tensor(MEAN)[:, None, None]
        best = densecrf(pixels.trunc().remainder(256), cams / cams.sum(0)).argmax(0)
        own = [0, *(k + 1 if k in left else 0 for k in owners)]
        return torch.tensor(own, device=best.device)[best]

    def _scores(
        self, image: Image.Image, maps: Tensor, names: Sequence[str], prompts: tuple[str, ...]
    ) -> Tensor:
        """The score of each name's own proposal: ``(K,)``."""
        shown = [
            # A map of next to nothing shows the image as it is.
            prompted(image, (cam > self.config.mask).cpu().numpy(), prompts)
            if cam.sum() > 1
            else image
            for cam in maps
        ]
        features = torch.cat(
            [
                self.judge.patch_features(
                    torch.stack([self._judged(one) for one in shown[first : first + BATCH]]),
                    class_token,
                )
                for first in range(0, len(shown), BATCH)
            ]
        )[:, 0, 0]
        scale = self.judge.model.logit_scale.exp().float()
        total = sum(
            (scale * features @ self.judge.encode_words(names, (template,)).T).softmax(-1)
            for template in self.config.prompts
        )
        return torch.as_tensor(total).softmax(-1).diagonal()

    def _judged(self, image: Image.Image) -> Tensor:
        """The middle square of the image, its short side brought to the judge's."""
        side, short = self.judge.image_size, min(image.size)
        width, height = (side * edge // short for edge in image.size)
        left, top = (int(np.rint((edge - side) / 2)) for edge in (width, height))
        resized = self.judge.resized(image, (width, height))
        return self.judge.pixels(resized.crop((left, top, left + side, top + side)))


def class_token(
    layers: Sequence[CLIPEncoderLayer], x: Tensor, grid: tuple[int, int], pixels: Tensor
) -> Tensor:
    """The class token before the last layer, on a grid of 1 × 1.

    Arguments and result are those of :data:`~nerve_fast.backbones.clip.ReadOut`.
    """
    return run(layers[:-1], x)[:, :1, None]
