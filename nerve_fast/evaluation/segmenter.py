"""An image of a data set to its label map, with the settings of a method."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from nerve_fast.backbones.source import AffinitySource
from nerve_fast.certainty import Certainty
from nerve_fast.evaluation.presets import Settings
from nerve_fast.evaluation.rules import best_words, cliper, thresholded
from nerve_fast.pipeline import stages
from nerve_fast.priors import CLIPPrior, PriorConfig, check_finite, probabilities_of
from nerve_fast.refiners import PAMR, Refiner


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """A method on a data set; called with an image it gives ``(H, W)`` int64 on the CPU.

    Values are indices of classes, or ``K`` for no label, which CLIPer's rule can give, and a
    threshold on a data set without a background.

    Without a refiner, and with PAMR, what comes to the image's own pixels are similarities; softmax
    over words, the best word of each class and the threshold follow there, in the order of the
    SCLIP line's code. Other refiners take and give probabilities that sum to 1 over classes.

    Args:
        prior: says what each patch looks like.
        settings: what to do.
        classes: the words of each of the ``K`` classes.
        has_background: whether class 0 is the background.
        refiner: of :mod:`nerve_fast.refiners`, or ``None``.
        graph: gives the queries and keys that the refiner needs, if it does.
        seed: of the graph's noise.
        names: of the classes, where the settings name some.
    """

    prior: CLIPPrior
    settings: Settings
    classes: Sequence[Sequence[str]]
    has_background: bool
    refiner: Refiner | None = None
    graph: AffinitySource | None = None
    seed: int = 0
    names: Sequence[str] = ()

    def __call__(self, image: Image.Image) -> Tensor:
        return self._labels(image).cpu()

    @property
    def words(self) -> int:
        """Number of words of all classes."""
        return sum(map(len, self.classes))

    @torch.no_grad()
    def _labels(self, image: Image.Image) -> Tensor:
        settings, size = self.settings, (image.height, image.width)
        words = [word for words in self.classes for word in words]
        similarity = self.prior.similarities([image], words)[0]
        check_finite(similarity)
        if settings.score is not None:
            prior = best_words(similarity, self.classes, settings.logit_scale)
            return cliper(
                prior,
                self._refined(image, prior / prior.sum(0)) if self.refiner else prior,
                size,
                has_background=self.has_background,
                score=settings.score,
                background=cast(float, settings.background),
                stretched=settings.stretched,
            )
        thresholds = rule_of(settings, self.names, len(self.classes), self.has_background)
        if self.refiner is None or isinstance(self.refiner, PAMR):
            return thresholded(
                self._refined(image, similarity) if self.refiner else similarity,
                size,
                lambda stripe: best_words(stripe, self.classes, settings.logit_scale),
                **thresholds,
            )
        probabilities = probabilities_of(similarity[None], self.classes, settings.logit_scale)[0]
        return thresholded(self._refined(image, probabilities), size, lambda x: x, **thresholds)

    def _refined(self, image: Image.Image, maps: Tensor) -> Tensor:
        if self.refiner is None:
            return maps
        graph = None
        if self.refiner.needs_graph and self.graph is not None:
            view = stages.graph_view(self.graph, image.size)
            graph = stages.graph_of(
                self.graph, [image], view, [torch.Generator().manual_seed(self.seed)]
            )
        return self.refiner(image, maps, graph)


def rule_of(
    settings: Settings, names: Sequence[str], count: int, has_background: bool
) -> dict[str, Any]:
    """The arguments of :func:`~nerve_fast.evaluation.rules.thresholded` that follow from settings.

    Args:
        settings: of the method.
        names: of the classes, where the settings name some.
        count: of the classes.
        has_background: whether class 0 is the background.
    """
    certainty = Certainty(settings.threshold, settings.under)
    under = 0 if has_background else count
    return {
        "least": certainty.least(names) if certainty.named else certainty.threshold,
        "area_threshold": settings.area_threshold,
        "under": under if settings.under is None else certainty.instead(names),
    }


def prior_of(settings: Settings) -> PriorConfig:
    """Return the prior that the settings describe.

    Raises:
        InputError: a value is out of its range.
    """
    return PriorConfig(
        name=settings.prior,
        resolution=settings.resolution,
        window=settings.window,
        stride=settings.stride,
        logit_scale=settings.logit_scale,
        protocol=settings.protocol,
        proxy=settings.proxy,
    )
