"""An image of a data set to its label map, with the settings of a method."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from nerve_fast.backbones.source import AffinitySource
from nerve_fast.certainty import Certainty
from nerve_fast.errors import check_choice
from nerve_fast.evaluation.presets import Settings
from nerve_fast.evaluation.rules import cliper, nearest, stretched, thresholded
from nerve_fast.pipeline import stages
from nerve_fast.priors import (
    ENTRIES,
    Prior,
    PriorConfig,
    as_distribution,
    best_words,
    check_finite,
)
from nerve_fast.refiners import Refiner


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """A method on a data set; called with an image it gives ``(H, W)`` int64 on the CPU.

    Values are indices of classes, or ``K`` for no label, which CLIPer's rule can give, and a
    threshold on a data set without a background.

    Without a refiner, and with one that is linear, what comes to the image's own pixels are the
    prior's maps, of a CLIP's patches similarities; its scores, there the softmax over words and the
    best word of each class, and the rule of the settings follow at the pixels, in the order of the
    SCLIP line's code. Other refiners take and give probabilities that sum to 1 over classes.

    Args:
        prior: says what each place looks like: of patches, or a whole system.
        settings: what to do.
        classes: the words of each of the ``K`` classes.
        has_background: whether class 0 is the background.
        refiner: of :mod:`nerve_fast.refiners`, or ``None``.
        graph: gives the queries and keys that the refiner needs, if it does.
        seed: of the graph's noise.
        names: of the classes, where the settings name some.
    """

    prior: Prior
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
        # GEM's background has no words.
        foreground = int(settings.rule == "stretched" and self.has_background)
        classes = self.classes[foreground:]
        maps = self.prior.maps([image], classes)[0]
        check_finite(maps)

        def scores(stripe: Tensor) -> Tensor:
            return self.prior.scores(stripe, classes)

        if settings.score is not None:
            prior = scores(maps)
            return cliper(
                prior,
                self._refined(image, prior if self._moves else as_distribution(prior)),
                size,
                has_background=self.has_background,
                score=settings.score,
                background=cast(float, settings.background),
                stretched=settings.stretched,
            )
        if not self._moves:
            maps, scores = as_distribution(scores(maps)), lambda stripe: stripe
        if self.refiner is not None:
            maps = self._refined(image, maps)
        if settings.rule == "nearest":
            return nearest(scores(maps), size)
        if settings.rule == "stretched":
            maps = stretched(maps, settings.resolution)
            if len(maps) == sum(map(len, classes)):
                scores = functools.partial(best_words, classes=classes)
        thresholds = rule_of(settings, self.names, len(self.classes), self.has_background)
        return thresholded(maps, size, scores, first=foreground, **thresholds)

    @property
    def _moves(self) -> bool:
        """Whether maps need not sum to 1 over classes."""
        return self.refiner is None or self.refiner.linear

    def _refined(self, image: Image.Image, maps: Tensor) -> Tensor:
        if self.refiner is None:
            return maps
        graph = None
        if self.refiner.needs_graph and self.graph is not None:
            seen = self.refiner.graph_image(image)
            view = stages.graph_view(self.graph, seen.size)
            graph = stages.graph_of(
                self.graph, [seen], view, [torch.Generator().manual_seed(self.seed)]
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
    if "threshold" in ENTRIES[settings.prior].reads:
        # The prior has done it.
        settings = dataclasses.replace(settings, threshold=0.0)
    certainty = Certainty(settings.threshold, settings.under)
    under = 0 if has_background else count
    if settings.rule == "painted":
        least = torch.finfo(torch.float32).tiny
        return {"least": least, "area_threshold": 0.0, "under": under}
    return {
        "least": certainty.least(names) if certainty.named else certainty.threshold,
        "area_threshold": settings.area_threshold,
        "under": under if settings.under is None else certainty.instead(names),
    }


def prior_of(
    settings: Settings,
    background: str | None = None,
    others: Sequence[str] = (),
    stuff: Sequence[str] = (),
    said: Sequence[tuple[str, str]] = (),
) -> PriorConfig:
    """Return the prior that the settings describe; what it does not read is left out.

    Args:
        settings: of the method.
        background: a word of the class that is whatever no other class is, where there is one.
        others: words that compete with those of the classes, and stand for none.
        stuff: a word of each class that is stuff.
        said: what each class is called in prompts, by its first word.

    Raises:
        InputError: there is no such prior, or a value is out of its range.
    """
    check_choice("prior", settings.prior, ENTRIES)
    values: dict[str, Any] = {
        "resolution": settings.resolution,
        "window": settings.window,
        "stride": settings.stride,
        "logit_scale": settings.logit_scale,
        "protocol": settings.protocol,
        "templates": settings.templates,
        "background": background,
        "threshold": settings.threshold,
        "layer": settings.layer,
        "cut": settings.cut,
        "others": tuple(others),
        "mask": settings.mask,
        "confidence": settings.confidence,
        "box": settings.box,
        "visual": settings.visual,
        "visual_stuff": settings.visual_stuff,
        "stuff": tuple(stuff),
        "support": settings.support,
        "reweighting": settings.reweighting,
        "prompt": settings.prompt,
        "said": tuple(said),
        "heads": settings.heads,
        "iterations": settings.iterations,
        "step_size": settings.step_size,
    }
    read = {name: values[name] for name in ENTRIES[settings.prior].reads}
    return PriorConfig(settings.prior, networks=settings.networks, **read)
