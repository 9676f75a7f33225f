"""The priors that read a feature of each patch out of CLIP, and compare it with words."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from nerve_fast.backbones.clip import CLIPBackbone, ReadOut
from nerve_fast.backbones.dino import DINOBackbone
from nerve_fast.backbones.siglip import SigLIPBackbone
from nerve_fast.errors import InputError
from nerve_fast.priors.config import PriorConfig
from nerve_fast.priors.prior import ConfiguredPrior
from nerve_fast.priors.probabilities import as_distribution, best_words
from nerve_fast.priors.registry import ACTIVATIONS, METHODS, Method, Windows
from nerve_fast.priors.views import View, resized, view_of
from nerve_fast.shares import Share

WINDOW_BATCH = 16
"""Windows that go through CLIP at a time."""


@dataclasses.dataclass(frozen=True, eq=False)
class PatchFeatures:
    """Features of the windows of images.

    Attributes:
        view: how CLIP saw each image.
        images: ``B``, how many.
        batches: which windows ``(image, top, left)``, and their features ``(b, h, w, E)`` float32.
    """

    view: View
    images: int
    batches: Iterable[tuple[Sequence[tuple[int, int, int]], Tensor]]


class CLIPPrior(ConfiguredPrior):
    """CLIP's probability of each label at each place, or that of a model like it.

    Args:
        clip: the network.
        config: which method reads its patches, at what size, in which windows.
        method: of a system that is more than a method; ``None`` is the one that ``config`` names.

    Raises:
        InputError: the proxy of a method that has one is not available.
    """

    def __init__(
        self,
        clip: CLIPBackbone | SigLIPBackbone,
        config: PriorConfig | None = None,
        method: Method | None = None,
    ):
        self.clip = clip
        self.config = PriorConfig() if config is None else config
        self.method = METHODS[self.config.name] if method is None else method
        self.read_out = read_out_of(self.method, self.config, clip)

    @property
    def networks(self) -> Sequence[Any]:
        """See :meth:`ConfiguredPrior.networks`."""
        proxy = getattr(self.read_out, "proxy", None)
        return (self.clip,) if proxy is None else (self.clip, proxy)

    def view(
        self,
        image_size: tuple[int, int],
        seen: tuple[int, int] | None = None,
        native_size: int | None = None,
    ) -> View:
        """See :meth:`Prior.view`.

        Where the graph's network sees tiles, CLIP sees as many pixels to one of that network's as
        where both see what they know best.
        """
        magnified = None
        if seen is not None:
            ratio = 1.5 * self.clip.image_size / native_size
            magnified = (seen[0] * ratio, seen[1] * ratio)
        return view_of(self.clip, image_size, self.config, magnified)

    def memory(self, view: View, images: int, words: int) -> int:
        """See :meth:`Prior.memory`."""
        clip = self.clip
        windows = Windows(clip, self.read_out, view, min(WINDOW_BATCH, images * len(view)))
        cells = max(math.prod(view.size) // view.unit**2, self.method.cells(windows))
        similarities = 4 * images * cells + math.prod(view.window) // view.unit**2
        similarities += windows.count * windows.patches
        # NACLIP's neighbourhood, made in float32.
        neighbourhood = (1 + windows.patches) ** 2 * (4 + 4 + clip.model.dtype.itemsize)
        activations = ACTIVATIONS * windows.hidden + self.method.memory(windows)
        return activations + 4 * words * similarities + neighbourhood

    def encoded_memory(self, view: View, images: int) -> int:
        """See :meth:`Prior.encoded_memory`."""
        one = Windows(self.clip, self.read_out, view, 1)
        places = max(one.patches, self.method.cells(one))
        return 4 * images * len(view) * places * self.clip.embedding_size

    def check_labels(self, classes: Sequence[Sequence[str]], *, progress: bool = False) -> None:
        """Encode the words, which later calls take from memory; see :meth:`Prior.check_labels`."""
        words = [word for words in classes for word in words]
        self.clip.encode_words(words, self.config.prompts, progress=progress)

    def encode(
        self,
        images: Sequence[Image.Image],
        view: View | None = None,
        advance: Callable[[int], None] = lambda windows: None,
    ) -> PatchFeatures:
        """Features of all windows; of 4,096² pixels they take hundreds of megabytes."""
        view = view or self.view(images[0].size)
        return PatchFeatures(view, len(images), list(self._windows(images, view, advance)))

    def probabilities(self, encoded: PatchFeatures, classes: Sequence[Sequence[str]]) -> Tensor:
        """``(B, K, h, w)`` float32 on the grid of :meth:`similarities`."""
        similarity = self._similarities(encoded, [word for words in classes for word in words])
        return self._distribution(similarity, classes)

    def __call__(
        self,
        images: Sequence[Image.Image],
        classes: Sequence[Sequence[str]],
        view: View | None = None,
        advance: Callable[[int], None] = lambda windows: None,
    ) -> Tensor:
        """:meth:`probabilities` of :meth:`encode`, equal to the bit; no features are kept."""
        return self.probabilities(self._passing(images, view, advance), classes)

    def shared(
        self,
        images: Sequence[Image.Image],
        classes: Sequence[Sequence[str]],
        view: View,
        share: Share,
        advance: Callable[[int], None] = lambda windows: None,
    ) -> Tensor:
        """See :meth:`Prior.shared`: each process sees a part of several windows."""
        if share.alone or len(view) == 1:
            return self(images, classes, view, advance)
        passing = PatchFeatures(
            view, len(images), self._windows(images, view, advance, share.index, share.processes)
        )
        words = [word for words in classes for word in words]
        similarity = self._similarities(passing, words, share)
        return self._distribution(similarity, classes)

    def maps(self, images: Sequence[Image.Image], classes: Sequence[Sequence[str]]) -> Tensor:
        """:meth:`similarities` of the words of all labels, one after another."""
        return self.similarities(images, [word for words in classes for word in words])

    def scores(self, maps: Tensor, classes: Sequence[Sequence[str]]) -> Tensor:
        """The softmax over all words, and of each label its likeliest: these do not sum to 1."""
        return best_words(torch.softmax(self.config.logit_scale * maps, dim=-3), classes)

    def _distribution(self, similarity: Tensor, classes: Sequence[Sequence[str]]) -> Tensor:
        return as_distribution(self.scores(similarity, classes))

    def similarities(
        self,
        images: Sequence[Image.Image],
        words: Sequence[str],
        view: View | None = None,
        advance: Callable[[int], None] = lambda windows: None,
    ) -> Tensor:
        """How alike CLIP finds each place of images and each word: cosines.

        Where windows overlap they are averaged.

        Args:
            images: ``B`` of them, RGB, all of one shape.
            words: names of things.
            view: how CLIP sees them; ``None`` is as the settings say.
            advance: called with the number of windows just done.

        Returns:
            ``(B, words, h, w)`` float32: on the pixels that CLIP saw with the protocol ``mmseg``
            and with windows that the settings ask for; else on CLIP's patches, or of an image seen
            whole on the patches of the prior's proxy.

        Raises:
            InputError: a word is too long.
        """
        return self._similarities(self._passing(images, view, advance), words)

    def _passing(self, images, view, advance) -> PatchFeatures:
        """Features that are made as they are read, once."""
        view = view or self.view(images[0].size)
        return PatchFeatures(view, len(images), self._windows(images, view, advance))

    def _windows(
        self,
        images: Sequence[Image.Image],
        view: View,
        advance: Callable[[int], None],
        part: int = 0,
        parts: int = 1,
    ) -> Iterator[tuple[Sequence[tuple[int, int, int]], Tensor]]:
        clip = self.clip
        dino = self.method.positions == "dino"
        offset = self.config.position_offset if dino else 0.0
        positions = (offset, "bicubic" if dino else self.method.positions)
        padding = self._padding(view)
        images = [resized(clip, image, view.size, self.config) for image in images]
        tall, wide = view.window
        jobs = list(itertools.product(range(len(images)), view.tops, view.lefts))
        jobs = jobs[len(jobs) * part // parts : len(jobs) * (part + 1) // parts]
        for first in range(0, len(jobs), WINDOW_BATCH):
            batch = jobs[first : first + WINDOW_BATCH]
            crops = [images[i].crop((x, y, x + wide, y + tall)) for i, y, x in batch]
            pixels = torch.stack([clip.pixels(crop) for crop in crops])
            with torch.no_grad():
                features = clip.patch_features(pad(pixels, padding), self.read_out, *positions)
            yield batch, features
            advance(len(batch))

    def _padding(self, view: View) -> tuple[int, int, int, int]:
        """Zeros beside a window: left, right, above and below."""
        if not self.method.padded or self.config.protocol != "mmseg":
            return (0, 0, 0, 0)
        tall, wide = (-side % self.clip.patch for side in view.window)
        return wide // 2, wide - wide // 2, tall // 2, tall - tall // 2

    @torch.no_grad()
    def _similarities(
        self, encoded: PatchFeatures, words: Sequence[str], share: Share | None = None
    ) -> Tensor:
        """``share``: of several windows that processes see parts of; ``None`` has seen them all."""
        text = self.clip.encode_words(words, self.config.prompts)  # (words, E)
        view, images = encoded.view, encoded.images
        (tall, wide), unit = view.window, view.unit
        left, right, above, below = self._padding(view)
        total = count = None
        if share is not None:
            whole = (view.size[1] // unit, view.size[0] // unit)
            total, count = text.new_zeros(images, len(words), *whole), text.new_zeros(whole)
        for batch, features in encoded.batches:
            similarity = (features @ text.T).permute(0, 3, 1, 2)
            # Windows meet on cells that all of them have; alone, one keeps what it has.
            cells = (tall // unit, wide // unit)
            if unit > 1 and len(view) == 1:
                cells = (similarity.shape[-2], similarity.shape[-1])
            if total is None or count is None:
                whole = cells if len(view) == 1 else (view.size[1] // unit, view.size[0] // unit)
                total = text.new_zeros(images, len(words), *whole)
                count = text.new_zeros(whole)
            for (image, y, x), one in zip(batch, similarity, strict=True):
                whole_cells = (cells[0] + above + below, cells[1] + left + right)
                if whole_cells != tuple(one.shape[-2:]):
                    one = interpolate(one[None], whole_cells, mode="bilinear")[0]
                one = one[:, above : above + cells[0], left : left + cells[1]]
                rows = slice(y // unit, y // unit + cells[0])
                columns = slice(x // unit, x // unit + cells[1])
                total[image, :, rows, columns] += one
                if image == 0:
                    count[rows, columns] += 1
        if total is None or count is None:
            raise InputError("images is empty; expected one image or more")
        if share is not None:
            total, count = share.total(total), share.total(count)
        return total.div_(count)


def check_finite(values: Tensor) -> None:
    """Refuse probabilities or similarities that overflowed; waits for the device.

    Raises:
        InputError: a value is not finite.
    """
    if not torch.isfinite(values).all():
        raise InputError(
            "the prior's network gave values that are not finite: take another dtype "
            "(torch.bfloat16 or torch.float32), or check the model's weights"
        )


def read_out_of(
    method: Method, config: PriorConfig, backbone: CLIPBackbone | SigLIPBackbone
) -> ReadOut:
    """Return the read-out of a method; the proxy of a method that has one is loaded once.

    Raises:
        InputError: the proxy is not available.
    """
    if not method.networks:
        public = method.public if config.protocol == "mmseg" else None
        return public or method.read_out
    proxy = _proxy(config.network("proxy"), backbone.device, backbone.model.dtype)
    return method.read_out(proxy, backbone.image_mean, backbone.image_std)


# Settings are values, so the model is kept here; one, as a second would hold memory for nothing.
@functools.lru_cache(maxsize=1)
def _proxy(source, device, dtype) -> DINOBackbone:
    return DINOBackbone.from_pretrained(source, device=device, dtype=dtype)
