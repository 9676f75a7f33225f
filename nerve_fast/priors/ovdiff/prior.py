"""OVDiff's prior: the nearest prototypes of labels that the image seems to hold."""

import math
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.dino import DEFAULT_PROXY, DINOBackbone
from nerve_fast.backbones.sam import DEFAULT_MASKS, SegmentAnything
from nerve_fast.backbones.text_to_image import DEFAULT_TEXT_TO_IMAGE, TextToImage
from nerve_fast.imaging.images import to_tensor
from nerve_fast.priors.config import PriorConfig
from nerve_fast.priors.ovdiff import classes as chosen
from nerve_fast.priors.ovdiff.crops import crops, scaled
from nerve_fast.priors.ovdiff.extractors import CLIPKeys, DiffusionFeatures, DINOKeys, Extractor
from nerve_fast.priors.ovdiff.prototypes import CLUSTERS, compared, nearest
from nerve_fast.priors.ovdiff.support import SEED_OF_NOISE, Support, Unidentified
from nerve_fast.priors.prior import ConfiguredPrior, WholeImage
from nerve_fast.priors.probabilities import apart
from nerve_fast.priors.registry import ACTIVATIONS, Needed, system
from nerve_fast.utils.files import cache_folder

SIDE = 448
"""Short side of images unless another is asked for."""


@system(
    "ovdiff",
    clip="openai/clip-vit-base-patch16",
    templates="ovdiff",
    reads=("resolution", "logit_scale", "background", "stuff", "support"),
    networks={
        "diffusion": Needed("a Stable Diffusion", DEFAULT_TEXT_TO_IMAGE),
        "dino": Needed("a DINO", DEFAULT_PROXY),
        "detector": Needed("a SAM", DEFAULT_MASKS),
    },
)
class OVDiff(ConfiguredPrior):
    r"""Cosines to prototypes of images that Stable Diffusion makes of the labels.

    Each word has prototypes of what it looks like and of what is around it, in features of Stable
    Diffusion, CLIP and DINO (:class:`~nerve_fast.priors.ovdiff.support.Support`); they take minutes
    on a GPU and hours without, and are kept on disk. An image is seen whole and in square crops of
    its short side and of three quarters of it, half a short side apart. Of the labels that it seems
    to hold (:func:`~nerve_fast.priors.ovdiff.classes.present`), and of those that are stuff, each
    place has the largest cosine to a label's prototypes; that of the background is the largest to
    any label's background. Their mean over crops and networks is ``x``, −1 for all other labels,
    and the probabilities are

    .. math:: \mathrm{softmax}(\tau \, \max(x_k, 0))

    The authors take the largest ``x``, or the background where none is above 0; ``τ`` changes no
    label. Held to the public code (karazijal/sdov) on the same inputs; otherwise than there, noise
    is drawn anew for each image, so that no image depends on those before, a mask that is empty is
    no proposal, and networks compute in the prior's dtype, where Stable Diffusion has float16. A
    label that has synonyms is represented by its first word.

    Args:
        clip: says which labels there are, and is one of the extractors.
        dino, diffusion: the other two; the latter makes the support images.
        detector: gives masks of things in an image, whatever they are: CutLER in the public code,
            SAM here. See :class:`~nerve_fast.priors.ovdiff.support.Support`.
        config: the short side, ``τ``, which labels are the background and stuff, and the number of
            support images.
        cache: folder for prototypes; ``None`` is the package's.
    """

    def __init__(
        self,
        clip: CLIPBackbone,
        dino: DINOBackbone,
        diffusion: TextToImage,
        detector: Callable[[Image.Image], Any],
        config: PriorConfig | None = None,
        *,
        cache: Path | None = None,
    ):
        self.clip, self.dino, self.diffusion, self.detector = clip, dino, diffusion, detector
        self.config = PriorConfig("ovdiff") if config is None else config
        self._unidentified = Unidentified(f"{type(detector).__name__} {uuid.uuid4()}")
        self.extractors: tuple[Extractor, ...] = (
            DiffusionFeatures(diffusion),
            CLIPKeys(clip),
            DINOKeys(dino),
        )
        self.support = Support(
            diffusion,
            detector,
            self.extractors,
            self.config.prompts,
            self.config.support,
            self.networks,
            cache_folder() if cache is None else cache,
        )
        self._known: dict[str, dict[str, Tensor]] = {}

    @classmethod
    def load(
        cls,
        config: PriorConfig,
        clip: str,
        *,
        device: torch.device,
        dtype: torch.dtype,
        detector: Callable[[Image.Image], Any] | None = None,
    ) -> "OVDiff":
        """See :class:`~nerve_fast.priors.registry.System`.

        Args:
            detector: in place of the SAM that the settings name.
        """
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        network = CLIPBackbone.from_pretrained(clip, **options)
        if detector is None:
            # Of the device that ``cuda`` stands for: a SAM that is there already is taken.
            source = config.network("detector")
            detector = SegmentAnything.from_pretrained(source, device=network.device)
        return cls(
            network,
            DINOBackbone.from_pretrained(
                config.network("dino"), option="prior network dino", **options
            ),
            TextToImage.from_pretrained(
                config.network("diffusion"), option="prior network diffusion", **options
            ),
            detector,
            config,
        )

    @property
    def networks(self) -> Sequence[Any]:
        """See :meth:`ConfiguredPrior.networks`."""
        detector: Any = self.detector
        if getattr(detector, "identity", None) is None:
            detector = self._unidentified
        return (self.clip, self.dino, self.diffusion, detector)

    @property
    def side(self) -> int:
        """The short side of images, in pixels."""
        return self.config.resolution or SIDE

    def memory(self, view: WholeImage, images: int, words: int) -> int:
        """See :meth:`Prior.memory`: one network at a time, prototypes, and maps.

        What making prototypes takes is :meth:`~nerve_fast.priors.ovdiff.support.Support.memory`.
        """
        width, height = scaled(view.size, self.side)
        looking = max(one.memory(height, width, self.side) for one in self.extractors)
        text = self.clip.model.config.text_config.hidden_size
        prompts = chosen.BATCH * self.clip.context * text * self.clip.model.dtype.itemsize
        widths = (self.diffusion.channels, self.clip.model.config.vision_config.hidden_size)
        channels = sum(widths) + self.dino.heads * self.dino.head_dim
        prototypes = 16 * words * (1 + self.config.support + CLUSTERS) * channels
        maps = 4 * ((images + 3) * words + 8) * width * height
        return max(looking, ACTIVATIONS * prompts) + prototypes + maps

    def encoded_memory(self, view: WholeImage, images: int) -> int:
        """See :meth:`Prior.encoded_memory`: the images themselves."""
        return 3 * images * math.prod(view.size)

    def check_labels(self, classes: Sequence[Sequence[str]], *, progress: bool = False) -> None:
        """Make the prototypes that are neither known nor on disk; see :meth:`Prior.check_labels`.

        Processes that have the same cache share the words, where a detector's prototypes are kept.

        Raises:
            InputError: a word is too long for the networks, its images show it nowhere, or the
                memory does not suffice.
        """
        names = [words[0] for words in apart(self.config.background, classes)[1]]
        for name in names:
            for template in self.config.prompts:
                self.diffusion.check(name, template)
        self.clip.encode_words(names, chosen.PROMPT, progress=progress)
        self._learn(names, progress)

    def _learn(self, names: Sequence[str], progress: bool = False) -> None:
        missing = [name for name in dict.fromkeys(names) if name not in self._known]
        if not missing:
            return
        kept = self.support.kept()
        if kept is not None:
            there = {name: kept.load(name) for name in missing}
            self._known |= {name: found for name, found in there.items() if found is not None}
        absent = [name for name in missing if name not in self._known]
        if not absent:
            return
        self.support.check_memory()
        with tqdm(
            total=len(absent) * self.config.support,
            desc="support images",
            unit="image",
            disable=None if progress else True,
        ) as bar:

            def advance(images: int) -> None:
                bar.update(images)

            # What another process is making is left for last, and waited for then.
            for patient in (False, True):
                for name in absent:
                    if name in self._known:
                        continue
                    made = self.support.kept_or_made(name, kept, advance, patient=patient)
                    if made is not None:
                        self._known[name] = made

    def probabilities(
        self, encoded: Sequence[Image.Image], classes: Sequence[Sequence[str]]
    ) -> Tensor:
        """``(B, K, h, w)`` float32 on the pixels of images of that short side."""
        return torch.stack([self.scores(one, classes) for one in self.maps(encoded, classes)])

    def scores(self, maps: Tensor, classes: Sequence[Sequence[str]]) -> Tensor:
        """See :meth:`Prior.scores`: the probabilities, of cosines below 0 as of 0."""
        return torch.softmax(self.config.logit_scale * maps.clamp(min=0), dim=0)

    @torch.no_grad()
    def maps(self, images: Sequence[Image.Image], classes: Sequence[Sequence[str]]) -> Tensor:
        """Mean cosines to the nearest prototypes, ``(B, K, h, w)``; −1 of labels not there."""
        place, _ = apart(self.config.background, classes)
        numbers = [number for number in range(len(classes)) if number != place]
        names = [classes[number][0] for number in numbers]
        self._learn(names)
        is_stuff = [bool({*classes[number]} & {*self.config.stuff}) for number in numbers]
        prototypes = [self._prototypes(one.name, names, is_stuff) for one in self.extractors]
        found = []
        for image in images:
            image = image.resize(scaled(image.size, self.side), Image.Resampling.LANCZOS)
            things = [k for k, stuff in enumerate(is_stuff) if not stuff]
            there = chosen.present(self.clip, image, [names[k] for k in things])
            staying = sorted({things[k] for k in there} | {*range(len(names))} - {*things})
            own = [
                ([fore[k] for k in staying], torch.cat([back[k] for k in staying]))
                for fore, back in prototypes
            ]
            mean = self._compared(to_tensor(image), own, place is not None)
            maps = mean.new_full((len(classes), *mean.shape[1:]), -1.0)
            maps[[numbers[k] for k in staying]] = mean[: len(staying)]
            if place is not None:
                maps[place] = mean[-1]
            found.append(maps)
        return torch.stack(found)

    def _prototypes(
        self, extractor: str, names: Sequence[str], stuff: Sequence[bool]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Those of an extractor, of each name, that take part: see :func:`compared`."""
        foreground, background = (
            [self._known[name][f"{extractor} {kind}"].to(self.clip.device) for name in names]
            for kind in ("foreground", "background")
        )
        return compared(foreground, background, stuff)

    def _compared(
        self,
        pixels: Tensor,
        prototypes: Sequence[tuple[Sequence[Tensor], Tensor]],
        background: bool,
    ) -> Tensor:
        """The mean over crops and extractors of the nearest prototypes' cosines, ``(L, h, w)``.

        Args:
            pixels: ``(3, h, w)``.
            prototypes: for each extractor those of each label and of all backgrounds.
            background: whether there is one, the last of the maps.
        """
        height, width = pixels.shape[-2:]
        labels = len(prototypes[0][0]) + background
        total = torch.zeros(labels, height, width, device=self.clip.device)
        count = torch.zeros(height, width, device=self.clip.device)
        noise = torch.Generator().manual_seed(SEED_OF_NOISE)
        for extractor, (fore, back) in zip(self.extractors, prototypes, strict=True):
            for rows, columns in crops((height, width), self.side):
                crop = extractor.fitted(pixels[:, rows, columns], self.side)
                features = extractor.features(crop, noise, noise)
                found = nearest(features, fore, back if background else None)
                size = (rows.stop - rows.start, columns.stop - columns.start)
                found = interpolate(found[None], size, mode="bilinear")[0].clamp(-1, 1)
                total[:, rows, columns] += found.to(total.device)
                count[rows, columns] += 1
        return total / count
