"""What an evaluation or an ablation is asked for: immutable settings, checked when made."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from nerve_fast.certainty import Certainty, Threshold
from nerve_fast.config import NerveConfig
from nerve_fast.errors import SettingError, check_choice, quoted
from nerve_fast.evaluation.ablation.ablations import ABLATIONS, Setting, refuse_doubles
from nerve_fast.evaluation.presets import PRESETS, REFINERS
from nerve_fast.pipeline.settings import ModelSettings, check_count
from nerve_fast.utils.named import named_networks
from nerve_fast.utils.units import parse_bytes, parse_pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """A method on the images of a data set.

    Attributes:
        dataset: its name, see :func:`nerve_fast.datasets.load`.
        root: the folder where it lies; ``None`` for ``"tiny"``.
        preset: the settings of a method, one of
            :data:`~nerve_fast.evaluation.presets.PRESETS`.
        limit: only so many images, the first ones; ``None`` takes all.
        max_pixels: of an image or mask file, above which it is not decoded: a number or such as
            ``"400MP"``; ``None`` is Pillow's limit.
        output: the folder that results are written to; ``None`` is a name made of the data set and
            the preset.
        models: the networks.
        config: of the random walk.
        threshold: in place of the preset's: a number for all classes, or numbers by class.
        background: the class of pixels under the threshold; ``None`` is the data set's background,
            and where it has none no class, which is right nowhere.
        prior, prior_resolution, prior_window, prior_stride, prior_support, prior_networks,
            logit_scale, vocabulary: what takes the place of the preset's ``prior``,
            ``resolution``, ``window``, ``stride``, ``support``, ``networks``, ``logit_scale`` and
            ``vocabulary``; ``None`` leaves the preset's. See
            :class:`nerve_fast.evaluation.presets.Settings`.

    Raises:
        SettingError, InputError: a value is out of its range.
        TypeError: a value is of the wrong type.
    """

    dataset: str
    root: str | os.PathLike | None = None
    preset: str = "fixed"
    limit: int | None = None
    max_pixels: int | str | None = None
    output: str | os.PathLike | None = None
    models: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    config: NerveConfig = dataclasses.field(default_factory=NerveConfig)
    prior: str | None = None
    prior_resolution: int | None = None
    prior_window: int | None = None
    prior_stride: int | None = None
    prior_support: int | None = None
    prior_networks: Mapping[str, str] | Sequence[tuple[str, str]] | None = None
    logit_scale: float | None = None
    threshold: Threshold | None = None
    background: str | None = None
    vocabulary: str | None = None

    def __post_init__(self):
        check_count("limit", self.limit, 1)
        check_choice("preset", self.preset, PRESETS)
        if self.max_pixels is not None:
            object.__setattr__(self, "max_pixels", parse_pixels(self.max_pixels))
        object.__setattr__(self, "threshold", Certainty(self.threshold).threshold)
        if self.background is not None and not isinstance(self.background, str):
            raise TypeError(f"background is {quoted(self.background)}; expected a class")
        for name, kind in (("models", ModelSettings), ("config", NerveConfig)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"{name} is {quoted(getattr(self, name))}; expected {kind.__name__}(…)"
                )
        if self.prior_networks is not None:
            networks = named_networks("prior_networks", self.prior_networks)
            object.__setattr__(self, "prior_networks", networks)
        for field in ("root", "output"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, Path(getattr(self, field)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings(MethodSettings):
    """What :func:`nerve_fast.evaluation.run` does.

    Attributes:
        refiner: what improves the prior, in place of the preset's.
        draw: so many of the worst and of the best images are drawn.
        fresh: forget what an earlier run left in the folder.
    """

    refiner: str | None = None
    draw: int = 0
    fresh: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_count("draw", self.draw, 0)
        if self.refiner is not None:
            check_choice("refiner", self.refiner, REFINERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationSettings(MethodSettings):
    """What :func:`nerve_fast.evaluation.ablate` does.

    Attributes:
        names: of :data:`~nerve_fast.evaluation.ablation.ablations.ABLATIONS`.
        cache_size: bytes that the features on disk may take, a number or such as ``"20GB"``.
        document: a Markdown file that takes the tables too, with the plots in ``plots/`` beside it.
        command: what the page says it was written by; ``None`` is the call in Python.
    """

    names: Sequence[str]
    cache_size: int | str = "20GB"
    document: str | os.PathLike | None = None
    command: str | None = None

    refiner: ClassVar[str] = "walk"
    """What is varied is the walk, whatever the preset has."""

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.names, (list, tuple)):
            raise TypeError(f"names is {quoted(self.names)}; expected a list of names of ablations")
        for name in self.names:
            check_choice("ablation", name, ABLATIONS)
        object.__setattr__(self, "names", tuple(self.names))
        if "steps" in self.names and self.config.steps is None:
            raise SettingError("the ablation steps varies {steps}, which is none; give it a number")
        for name in self.names:
            refuse_doubles(name, Setting(self.config, self.models.timestep))
        if "timestep" in self.names and self.models.graph is not None:
            raise SettingError(
                "the ablation timestep varies the noise that the UNet sees; leave out {graph}"
            )
        parse_bytes(self.cache_size, "cache_size")
        if self.document is not None:
            object.__setattr__(self, "document", Path(self.document))
