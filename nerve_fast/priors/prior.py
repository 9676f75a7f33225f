"""What turns images and labels into the prior ``G``: the interface of every prior."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from nerve_fast.priors.config import PriorConfig
from nerve_fast.shares import Share


@dataclasses.dataclass(frozen=True)
class WholeImage:
    """An image of ``size = (width, height)`` pixels, seen at once and as it is."""

    size: tuple[int, int]

    def __len__(self) -> int:
        return 1


class Prior:
    """Base of all priors; a user's own overrides :meth:`probabilities`, and more where it helps.

    Attributes:
        identity: whatever tells its results from those of other priors: a kind, digests of weights,
            settings. Caches and records are keyed by it.
    """

    identity: str = ""

    def view(
        self,
        image_size: tuple[int, int],
        seen: tuple[int, int] | None = None,
        native_size: int | None = None,
    ) -> Any:
        """How images of ``image_size = (width, height)`` are seen; plans print its ``size``.

        Args:
            image_size: of the images, in pixels.
            seen: ``(width, height)`` at which the graph's network sees an image that it sees in
                tiles; ``None`` where it sees it whole.
            native_size: side of the images that the graph's network was trained on, in pixels.

        Returns:
            An object with a ``size`` in pixels and the number of windows as its length.
        """
        return WholeImage(image_size)

    def memory(self, view: Any, images: int, words: int) -> int:
        """Bytes that ``images`` of a view take at most on their way, with so many words."""
        return 0

    def encoded_memory(self, view: Any, images: int) -> int:
        """Bytes of what :meth:`encode` gives for ``images`` of a view."""
        return 0

    def check_labels(self, classes: Sequence[Sequence[str]], *, progress: bool = False) -> None:
        """Refuse now the labels that would be refused later; what is found out may be kept.

        Raises:
            InputError: a label is not usable.
        """

    def encode(
        self,
        images: Sequence[Image.Image],
        view: Any,
        advance: Callable[[int], None] = lambda windows: None,
    ) -> Any:
        """What the networks find in images, whatever the labels; by default the images themselves.

        Args:
            images: ``B`` of them, RGB, all of one size.
            view: what :meth:`view` gave for them.
            advance: called with the number of windows just done.
        """
        return list(images)

    def probabilities(self, encoded: Any, classes: Sequence[Sequence[str]]) -> Tensor:
        """The probability of each label at each place.

        Args:
            encoded: what :meth:`encode` gave.
            classes: the words of each of the ``K`` labels.

        Returns:
            ``(B, K, h, w)`` float32 on a grid of any size that covers the images, summing to 1
            over ``K``.
        """
        raise NotImplementedError

    def __call__(
        self,
        images: Sequence[Image.Image],
        classes: Sequence[Sequence[str]],
        view,
        advance: Callable[[int], None] = lambda windows: None,
    ) -> Tensor:
        """:meth:`probabilities` of :meth:`encode`; a prior may spare what lies between."""
        return self.probabilities(self.encode(images, view, advance), classes)

    def maps(self, images: Sequence[Image.Image], classes: Sequence[Sequence[str]]) -> Tensor:
        """What an evaluation brings to the pixels; :meth:`scores` follows there.

        By default the probabilities. A prior whose authors bring similarities to the pixels, and
        take the softmax there, gives these.

        Args:
            images: ``B`` of them, RGB, all of one size.
            classes: the words of each of the ``K`` labels.

        Returns:
            ``(B, M, h, w)`` float32 on a grid of any size that covers the images.
        """
        return self(images, classes, self.view(images[0].size))

    def scores(self, maps: Tensor, classes: Sequence[Sequence[str]]) -> Tensor:
        """The score of each label at each place, ``(M, …)`` of :meth:`maps` to ``(K, …)``.

        They are not negative; where they are made to sum to 1 they are the probabilities.
        """
        return maps

    def shared(
        self,
        images: Sequence[Image.Image],
        classes: Sequence[Sequence[str]],
        view,
        share: Share,
        advance: Callable[[int], None] = lambda windows: None,
    ) -> Tensor:
        """The same for processes that see the same images, and have all of the result.

        Each does all of it, unless a prior can share its windows.
        """
        return self(images, classes, view, advance)


class ConfiguredPrior(Prior):
    """A prior that settings and networks tell from others.

    Attributes:
        config: the settings.
    """

    config: PriorConfig

    @property
    def networks(self) -> Sequence[Any]:
        """All that the prior looks with, each with an ``identity``."""
        raise NotImplementedError

    @property
    def identity(self) -> str:  # type: ignore[override]  # users set the base's; this takes long
        """The settings, and what tells the networks from others."""
        networks = [network.identity for network in self.networks]
        return f"{json.dumps(dataclasses.asdict(self.config))} {json.dumps(networks)}"
