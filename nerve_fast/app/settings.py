"""What an app is started with, and what one call of its pipeline takes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from nerve_fast.config import NerveConfig, default_config
from nerve_fast.errors import InputError, SettingError
from nerve_fast.pipeline.settings import ModelSettings
from nerve_fast.priors import PriorConfig

MOST_STEPS = 30
"""The longest walk of the page, all of whose steps are kept for each user."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppSettings:
    """What an app is started with: immutable, checked when made.

    Attributes:
        models: the networks.
        words: whether a CLIP is loaded; without it there are clicks alone.
        prior: how CLIP's patches become the prior.
        config: fields of the graph stage's settings in place of the default ones.
        resolution, max_memory, global_keys, max_key_error, tile, overlap: as for a call of
            :class:`~nerve_fast.NervePipeline`.

    Raises:
        InputError: a value is out of its range.
        TypeError: a value is of the wrong type.
    """

    models: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    words: bool = True
    prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    resolution: int | None = None
    max_memory: int | str | None = None
    global_keys: int | Literal["auto"] | None = "auto"
    max_key_error: float | None = None
    tile: int | None = None
    overlap: int | None = None

    def __post_init__(self):
        if not self.words and self.models.clip is not None:
            raise SettingError("{clip} is given, and {no_words} loads none; leave one of them out")
        for words in (True, False):
            check_steps(self.config_for(words=words).steps)

    def config_for(self, *, words: bool) -> NerveConfig:
        """The settings of the graph stage that the page starts with, with or without words."""
        return default_config(words).replace(**self.config)


def check_steps(steps: int | None) -> None:
    """Refuse a walk that the page cannot show step by step.

    Raises:
        InputError: it is too long, or goes on to its limit.
    """
    if steps is None or steps > MOST_STEPS:
        raise InputError(
            f"steps is {steps}; expected a whole number up to {MOST_STEPS}, as the page keeps "
            "each step of the walk; `nerve-fast segment` takes longer ones"
        )
