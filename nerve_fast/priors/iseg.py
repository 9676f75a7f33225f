"""iSeg (Sun, Cao, Xie, Khan, Pang: An Iterative Refinement-based Framework, arXiv 2409.03209)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from nerve_fast.backbones.attention_maps import attention_map, reduce_entropy_
from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.diffusion import DEFAULT_DIFFUSION
from nerve_fast.backbones.prompted import PromptedAttention, PromptedDiffusion
from nerve_fast.errors import InputError
from nerve_fast.priors import tagclip
from nerve_fast.priors.config import PriorConfig
from nerve_fast.priors.crossattention import (
    CROSS,
    HEADS,
    SELF,
    SELF_HEADS,
    WEIGHTS,
    averaged_in_clusters,
    token_maps,
)
from nerve_fast.priors.gradcam import at_pixels, stretched
from nerve_fast.priors.prior import ConfiguredPrior, WholeImage
from nerve_fast.priors.probabilities import apart, as_distribution
from nerve_fast.priors.registry import Needed, system
from nerve_fast.priors.wording import Worded, worded
from nerve_fast.utils.tiles import GPU_TILE_BYTES

SIDE = 512
"""Side of the square that the diffusion model sees an image as, in pixels."""

SEED = 1101
"""Of the noise, which is the same for every image."""

ENHANCED = 1.6
"""What the text encoder gives for the tokens of names is multiplied by it."""


@system(
    "iseg",
    clip="openai/clip-vit-base-patch16",
    templates="tagclip",
    reads=(
        *("background", "threshold", "others", "confidence", "reweighting", "prompt", "said"),
        *("heads", "iterations", "step_size"),
    ),
    networks={"diffusion": Needed("a Stable Diffusion", DEFAULT_DIFFUSION)},
)
class ISegPrior(ConfiguredPrior):
    r"""Cross-attention to the names of what CLIP finds in an image, moved along self-attention.

    TagCLIP says which labels are in the image (:func:`~nerve_fast.priors.tagclip.label_scores`).
    Their names make a prompt, in which what the text encoder gives for their tokens is multiplied
    by :data:`ENHANCED`. Of the image squashed to a square of :data:`SIDE` pixels, with noise of
    step 100, the UNet's cross-attentions give a map of each token
    (:func:`~nerve_fast.priors.crossattention.token_maps`), the mean of its cluster at each place
    (:func:`~nerve_fast.priors.crossattention.averaged_in_clusters`). A label's map is the mean of
    its tokens', and moves along the self-attention, whose entropy is reduced, with the prompt:

    .. math:: G \leftarrow A' (G - \min G) / \textstyle\sum (G - \min G)

    (:func:`~nerve_fast.backbones.attention_maps.reduce_entropy_`). Brought to pixels bilinearly and
    to 0 to 1 each, maps compete with the background, :math:`(1 - \max_k G_k)^2`; or, where there is
    a threshold, there is background where none reaches it. Labels that TagCLIP does not find are
    nowhere. Of labels that have synonyms the first word is looked for and said.

    Otherwise than in the public code: noise is drawn on the CPU in float32; distances of clusters
    are in float32, not in 16 bits; tokens are those that names have, where the authors count two of
    "fire hydrant", which has three, and are one off in all that follows it; names that leave no
    room in the text encoder's context are left out, from the least sure one on.

    Args:
        clip: finds labels; it sees the image at its own size, rounded up to whole patches.
        diffusion: gives the maps.
        config: see :class:`PriorConfig`.

    Raises:
        InputError: the UNet has other heads than those that the settings name.
    """

    def __init__(
        self, clip: CLIPBackbone, diffusion: PromptedDiffusion, config: PriorConfig | None = None
    ):
        self.clip = clip
        self.diffusion = diffusion
        self.config = PriorConfig("iseg") if config is None else config
        self.tokenizer = diffusion.prompts.tokenizer or clip.tokenizer
        known, most = diffusion.prompts.vocabulary, max(self.tokenizer.get_vocab().values())
        if most >= known:
            raise InputError(
                f"prior network diffusion: its text encoder knows {known} tokens, and the "
                f"tokenizer has token {most}: they belong to different models"
            )
        if diffusion.self_heads <= max(SELF_HEADS):
            raise InputError(
                f"prior network diffusion: {SELF[0]} has {diffusion.self_heads} heads; expected "
                f"more than {max(SELF_HEADS)}, as Stable Diffusion 1 and 2 have"
            )
        self.heads = HEADS[self.config.heads]
        for heads, count in zip(self.heads or (), diffusion.heads, strict=False):
            if max(heads) >= count:
                raise InputError(
                    f"prior heads is {self.config.heads!r}, which are heads of Stable Diffusion "
                    f"2.1, and this UNet has {count} where it has more; take 'all'"
                )

    @classmethod
    def load(
        cls, config: PriorConfig, clip: str, *, device: torch.device, dtype: torch.dtype
    ) -> "ISegPrior":
        """See :class:`~nerve_fast.priors.registry.System`."""
        diffusion = PromptedDiffusion.from_pretrained(
            config.network("diffusion"),
            device=device,
            dtype=dtype,
            layers=SELF,
            cross=CROSS,
            option="prior network diffusion",
        )
        backbone = CLIPBackbone.from_pretrained(clip, device=device, dtype=dtype)
        return cls(backbone, diffusion, config)

    @property
    def networks(self) -> Sequence[Any]:
        """See :meth:`ConfiguredPrior.networks`."""
        return (self.clip, self.diffusion)

    def memory(self, view: WholeImage, images: int, words: int) -> int:
        """See :meth:`Prior.memory`: CLIP's or the diffusion's layers, or the self-attention."""
        places = (SIDE // self.diffusion.diffusion.unit) ** 2
        # Maps of all tokens, of which clustering has four at a time.
        clustering = 16 * places * self.diffusion.prompts.length
        moving = 4 * places**2 + 3 * GPU_TILE_BYTES
        seeing = self.diffusion.memory((SIDE, SIDE)) + clustering + moving
        kept = 4 * words * (images * math.prod(view.size) + 3 * max(SIDE**2, math.prod(view.size)))
        return max(tagclip.memory(self.clip, view.size), seeing) + kept

    def encoded_memory(self, view: WholeImage, images: int) -> int:
        """See :meth:`Prior.encoded_memory`: the images themselves."""
        return 3 * images * math.prod(view.size)

    def check_labels(self, classes: Sequence[Sequence[str]], *, progress: bool = False) -> None:
        """Encode the words, which later calls take from memory; see :meth:`Prior.check_labels`."""
        names = [words[0] for words in apart(self.config.background, classes)[1]]
        self._text(names, progress=progress)
        for name in names:
            prompt = self._worded([name])
            if not prompt.places[0]:
                raise InputError(
                    f"the label {name!r} has no tokens in the diffusion model's prompt; expected a "
                    "word or more"
                )
            if not self._fits(prompt):
                raise InputError(
                    f"the label {name!r} does not fit into the {self.diffusion.prompts.length} "
                    "tokens of the diffusion model's text encoder with its prompt: shorten it"
                )

    @torch.no_grad()
    def probabilities(
        self, encoded: Sequence[Image.Image], classes: Sequence[Sequence[str]]
    ) -> Tensor:
        """``(B, K, SIDE, SIDE)`` float32 on the square that the diffusion model sees."""
        return as_distribution(
            torch.stack([self._scores(image, classes, (SIDE, SIDE)) for image in encoded])
        )

    @torch.no_grad()
    def maps(self, images: Sequence[Image.Image], classes: Sequence[Sequence[str]]) -> Tensor:
        """``(B, K, H, W)`` float32 at the images' own pixels; they do not sum to 1."""
        size = (images[0].height, images[0].width)
        return torch.stack([self._scores(image, classes, size) for image in images])

    def _scores(
        self, image: Image.Image, classes: Sequence[Sequence[str]], size: tuple[int, int]
    ) -> Tensor:
        place, others = apart(self.config.background, classes)
        found, maps = self._found(image, [words[0] for words in others])
        own = [number for number in range(len(classes)) if number != place]
        planes = maps.new_zeros(len(classes), *size)
        # Once more from 0 to 1 where pixels leave out the extremes.
        planes[[own[k] for k in found]] = stretched(at_pixels(maps, size))
        least = self.config.threshold
        planes[planes < least] = 0
        if place is not None:
            largest = planes.amax(0)
            planes[place] = (largest == 0).float() if least else (1 - largest) ** 2
        return planes

    def _found(self, image: Image.Image, names: Sequence[str]) -> tuple[list[int], Tensor]:
        """Which names are in an image, and their maps from 0 to 1, ``(k, SIDE, SIDE)``."""
        text = self._text(names)
        scores = tagclip.label_scores(self.clip, image, text, len(names), self.config.reweighting)
        order = {word: number for number, (word, _) in enumerate(self.config.said)}
        found = sorted(
            tagclip.chosen(scores, self.config.confidence),
            key=lambda k: order.get(names[k], len(order)),
        )
        prompt = self._worded([names[k] for k in found])
        while len(found) > 1 and not self._fits(prompt):
            found.remove(min(found, key=lambda k: float(scores[k])))
            prompt = self._worded([names[k] for k in found])
        seen = self._attention(image, prompt)
        side = SIDE // self.diffusion.diffusion.unit
        maps = averaged_in_clusters(token_maps(seen.cross, WEIGHTS, side, self.heads))
        G = torch.stack([maps[places].mean(0) for places in prompt.places]).flatten(1).T
        heads = list(SELF_HEADS)
        A = reduce_entropy_(attention_map(seen.q[heads], seen.k[heads]), self.config.step_size)
        for _ in range(self.config.iterations):
            G = A @ _shares(G)
        return found, stretched(at_pixels(G.T.unflatten(1, (side, side)), (SIDE, SIDE)))

    def _attention(self, image: Image.Image, prompt: Worded) -> PromptedAttention:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        pixels = interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
        backbone = self.diffusion.diffusion
        shape = (1, backbone.vae.config.latent_channels, *2 * (SIDE // backbone.scale,))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
        states = self.diffusion.prompts.states(prompt.tokens).clone()
        states[:, [place for places in prompt.places for place in places]] *= ENHANCED
        return self.diffusion.attention(2 * pixels - 1, noise, states)

    def _text(self, names: Sequence[str], *, progress: bool = False) -> Tensor:
        words = [*names, *self.config.others]
        return self.clip.encode_words(words, self.config.prompts, progress=progress)

    def _worded(self, names: Sequence[str]) -> Worded:
        said = dict(self.config.said)
        plain = str.maketrans("", "", "[]")
        names = [said.get(name, name.translate(plain)) for name in names]
        return worded(self.tokenizer, self.config.prompt, names)

    def _fits(self, prompt: Worded) -> bool:
        """Whether all tokens that count have a place before the prompt's end."""
        return max(map(max, prompt.places)) < self.diffusion.prompts.length - 1


def _shares(G: Tensor) -> Tensor:
    """Columns ``(N, K)`` with a least value of 0 and a sum of 1; constant ones are 0."""
    G = G - G.amin(0)
    return G / G.sum(0).clamp_min(torch.finfo(G.dtype).tiny)
