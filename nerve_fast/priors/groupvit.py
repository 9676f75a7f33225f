"""GroupViT (Xu et al.: Semantic Segmentation Emerges from Text Supervision, CVPR 2022)."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from nerve_fast.backbones.groupvit import DEFAULT_GROUPVIT, GroupViTBackbone
from nerve_fast.errors import InputError
from nerve_fast.imaging.images import to_tensor
from nerve_fast.priors.config import PriorConfig
from nerve_fast.priors.prior import ConfiguredPrior
from nerve_fast.priors.probabilities import apart, as_distribution, best_words
from nerve_fast.priors.registry import ACTIVATIONS, system
from nerve_fast.priors.resizing import mmseg_size, opencv_bilinear
from nerve_fast.priors.views import View, windows

SIZES = 2
"""The short side, and the side of a window, in sides of what the checkpoint was trained at; the
stride is one: 448 and 224 for 224."""

KEPT = 5
"""Classes of a window that its groups may have: those that are most like all of it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Grouped:
    """What GroupViT finds in images.

    Attributes:
        view: how each was seen.
        images: ``B``, how many.
        windows: which ``(image, top, left)``; the group of each pixel, ``(H, W)`` uint8; features
            of the groups, ``(G, E)``, and of the whole window, ``(E,)``.
    """

    view: View
    images: int
    windows: list[tuple[tuple[int, int, int], Tensor, Tensor, Tensor]]


@system(
    "groupvit",
    clip=DEFAULT_GROUPVIT,
    templates="photo",
    reads=("background", "threshold"),
)
class GroupViT(ConfiguredPrior):
    r"""The segmentation head of the authors, which is not that of transformers.

    Each pixel of a window belongs to one group ``g``, the likeliest of the assignments brought to
    pixels. With ``A`` the cosines of groups and words times the checkpoint's scale, and ``A'`` the
    same with −∞ for all words but the :data:`KEPT` best ones of the window's own embedding,

    .. math:: p_g = \mathrm{softmax}(A'_g) \cdot \mathrm{softmax}(A_g)

    is what its pixels have, and the background has 1 at pixels whose largest ``p`` is less than the
    threshold and less than the largest of all groups. Where windows overlap they are averaged. The
    background is no word. As in the authors' code images are resized by OpenCV, to a short side
    twice that of the checkpoint, and a long one of at most 2048.

    A word that has synonyms has the largest ``p`` of them; the authors have one word a class.

    Args:
        groupvit: the network.
        config: which label is the background, and under which threshold.
    """

    def __init__(self, groupvit: GroupViTBackbone, config: PriorConfig | None = None):
        self.groupvit = groupvit
        self.config = PriorConfig("groupvit") if config is None else config

    @classmethod
    def load(
        cls, config: PriorConfig, clip: str, *, device: torch.device, dtype: torch.dtype
    ) -> "GroupViT":
        """See :class:`~nerve_fast.priors.registry.System`."""
        return cls(GroupViTBackbone.from_pretrained(clip, device=device, dtype=dtype), config)

    @property
    def networks(self) -> Sequence[Any]:
        """See :meth:`ConfiguredPrior.networks`."""
        return (self.groupvit,)

    def view(
        self,
        image_size: tuple[int, int],
        seen: tuple[int, int] | None = None,
        native_size: int | None = None,
    ) -> View:
        """See :meth:`Prior.view`; the graph's tiles make no difference."""
        side = self.groupvit.image_size
        size = mmseg_size(image_size, SIZES * side)
        if min(size) < self.groupvit.patch:
            raise InputError(
                f"GroupViT would see {size[0]} × {size[1]} pixels, less than its patch of "
                f"{self.groupvit.patch}; take an image that is less long"
            )
        return windows(size, SIZES * side, side, 1)

    def memory(self, view: View, images: int, words: int) -> int:
        """See :meth:`Prior.memory`: a window in the network with its attention, and the maps."""
        network, pixels = self.groupvit, math.prod(view.window)
        vision = network.model.config.vision_config
        tokens = pixels // network.patch**2 + max(vision.num_group_tokens)
        activations = ACTIVATIONS * tokens * vision.hidden_size * network.model.dtype.itemsize
        attention = 3 * 4 * vision.num_attention_heads * tokens**2
        assigned = 3 * 4 * pixels * max(vision.num_output_groups)
        return activations + attention + assigned + self._map_memory(view, images, words)

    def _map_memory(self, view: View, images: int, words: int) -> int:
        return 4 * words * (2 * images * math.prod(view.size) + 2 * math.prod(view.window))

    def encoded_memory(self, view: View, images: int) -> int:
        """See :meth:`Prior.encoded_memory`."""
        config = self.groupvit.model.config
        vision = config.vision_config
        # A stage without tokens of its own makes no groups.
        stages = zip(vision.num_output_groups, vision.num_group_tokens, strict=True)
        groups = [made for made, tokens in stages if tokens][-1]
        window = math.prod(view.window) + 4 * (groups + 1) * config.projection_dim
        return images * len(view) * window

    def check_labels(self, classes: Sequence[Sequence[str]], *, progress: bool = False) -> None:
        """Encode the words, which later calls take from memory; see :meth:`Prior.check_labels`."""
        _, foreground = apart(self.config.background, classes)
        words = [word for words in foreground for word in words]
        self.groupvit.encode_words(words, self.config.prompts, progress=progress)

    @torch.no_grad()
    def encode(
        self,
        images: Sequence[Image.Image],
        view: View,
        advance: Callable[[int], None] = lambda windows: None,
    ) -> Grouped:
        """See :meth:`Prior.encode`."""
        network, (tall, wide) = self.groupvit, view.window
        found = []
        for number, image in enumerate(images):
            pixels = to_tensor(opencv_bilinear(image, view.size))
            pixels = ((pixels - network.image_mean) / network.image_std).to(network.device)
            for top, left in itertools.product(view.tops, view.lefts):
                window = pixels[None, :, top : top + tall, left : left + wide]
                assigned, features, whole = network.groups(window)
                at_pixels = interpolate(assigned, (tall, wide), mode="bilinear")
                group = at_pixels[0].argmax(0).to(torch.uint8)
                found.append(((number, top, left), group, features[0], whole[0]))
                advance(1)
        return Grouped(view, len(images), found)

    def probabilities(self, encoded: Grouped, classes: Sequence[Sequence[str]]) -> Tensor:
        """``(B, K, h, w)`` float32 at the pixels that GroupViT saw: ``p`` made to sum to 1."""
        return as_distribution(self._maps(encoded, classes))

    def maps(self, images: Sequence[Image.Image], classes: Sequence[Sequence[str]]) -> Tensor:
        """``p`` as it is, which does not sum to 1; see :meth:`Prior.maps`."""
        return self._maps(self.encode(images, self.view(images[0].size)), classes)

    @torch.no_grad()
    def _maps(self, encoded: Grouped, classes: Sequence[Sequence[str]]) -> Tensor:
        place, foreground = apart(self.config.background, classes)
        words = [word for words in foreground for word in words]
        text = self.groupvit.encode_words(words, self.config.prompts)
        (tall, wide), (width, height) = encoded.view.window, encoded.view.size
        total = text.new_zeros(encoded.images, len(classes), height, width)
        count = text.new_zeros(height, width)
        for (image, top, left), group, features, whole in encoded.windows:
            p = self._group_scores(features, whole, text)  # (words, G)
            scores = best_words(p[..., None], foreground)[..., 0]
            if place is not None:
                least = min(self.config.threshold, p.max().item())
                background = (p.amax(0, keepdim=True) < least).to(p)
                scores = torch.cat([scores[:place], background, scores[place:]])
            rows, columns = slice(top, top + tall), slice(left, left + wide)
            total[image, :, rows, columns] += scores[:, group.long()]
            if image == 0:
                count[rows, columns] += 1
        return total.div_(count)

    def _group_scores(self, features: Tensor, whole: Tensor, text: Tensor) -> Tensor:
        affinity = self.groupvit.logit_scale * features @ text.T
        likeliest = (whole @ text.T).topk(min(KEPT, len(text))).indices
        kept = torch.full_like(affinity, -torch.inf)
        kept[:, likeliest] = affinity[:, likeliest]
        return (kept.softmax(-1) * affinity.softmax(-1)).T
