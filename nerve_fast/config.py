"""The settings of the graph stage."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

from nerve_fast.errors import InputError, quoted
from nerve_fast.normalization import NORMALIZATIONS, Normalization
from nerve_fast.numerics import LARGEST, is_finite

EXACT_TOKENS = 16_384
"""Up to so many tokens the pipeline's walk is exact, if not told otherwise."""

GLOBAL_KEYS = 2_048
"""Beyond them, the clusters that it takes the keys of the global part in."""

MOST = 1_000_000
"""The largest radius, number of clusters and of steps: no walk that ends comes near it."""

# Formatted here because torch.compile cannot format numbers that it traces as symbols.
UP_TO_LARGEST = f"from 0 to {LARGEST:g}"
FROM_SMALLEST = f"of {1 / LARGEST:g} or more"


@dataclasses.dataclass(frozen=True)
class NerveConfig:
    """Settings of the graph stage: immutable, checked when made.

    Args:
        alpha: probability that a walker moves on, in [0, 1].
        beta: share of the global part in the transition matrix, in [0, 1]; the rest is local.
        steps: number of steps ``L`` of the walk, at least 0; ``None`` walks to the limit ``P∞``,
            for which ``alpha`` must be below 1.
        radius: the local window is ``(2·radius + 1)²`` tokens, at least 1.
        self_affinity: ``ε_self``, affinity of a token with itself in the local part, at least 0.
        sharpness: ``c`` of the head weights ``∝ exp(−c · entropy)``, at least 0; 0 is the mean.
        normalization: how a row of affinities becomes a row of probabilities: a name in
            :data:`nerve_fast.normalization.NORMALIZATIONS` (``softmax``, ``relu``, ``l1``,
            ``shift``).
        temperature: ``τ`` of ``softmax``, above 0; the others do not use it.
        global_keys: ``M``, at least 1: the global part takes its keys in so many clusters, an
            approximation (see :mod:`nerve_fast.clusters`); ``None``, or as many as there are
            tokens, is exact.
        tolerance: with ``steps=None``, the largest absolute sum over labels by which a row of the
            result may differ from ``P∞``, above 0; a fixed number of steps does not use it.

    Raises:
        InputError: a value is out of its range, or not finite; a ``ValueError``.
        TypeError: a value is of the wrong type.
    """

    alpha: float = 0.9
    beta: float = 0.5
    steps: int | None = 10
    radius: int = 1
    self_affinity: float = 1.0
    sharpness: float = 1.0
    normalization: str = "softmax"
    temperature: float = 0.05
    global_keys: int | None = None
    tolerance: float = 1e-4

    def __post_init__(self):
        for name in ("alpha", "beta"):
            self._check_real(name, lambda x: 0 <= x <= 1, "between 0 and 1")
        for name in ("self_affinity", "sharpness"):
            self._check_real(name, lambda x: 0 <= x <= LARGEST, UP_TO_LARGEST)
        self._check_real("temperature", lambda x: x >= 1 / LARGEST, FROM_SMALLEST)
        self._check_real("tolerance", lambda x: x > 0, "above 0")
        if self.steps is not None:
            self._check_integer("steps", 0)
        elif self.alpha == 1:
            raise InputError(
                "alpha is 1.0 and steps is None; expected alpha below 1 for the limit of the walk, "
                "or a number of steps"
            )
        self._check_integer("radius", 1)
        if self.global_keys is not None:
            self._check_integer("global_keys", 1)
        if not isinstance(self.normalization, str) or self.normalization not in NORMALIZATIONS:
            raise InputError(
                f"normalization is {quoted(self.normalization)}; expected one of "
                f"{', '.join(NORMALIZATIONS)}"
            )

    @property
    def rule(self) -> Normalization:
        """The entry of the table that :attr:`normalization` names."""
        return NORMALIZATIONS[self.normalization]

    def _check_real(self, name, in_range, expected):
        value = getattr(self, name)
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not is_number:
            raise TypeError(f"{name} is {quoted(value)}; expected a number {expected}")
        if not (is_finite(value) and in_range(value)):
            raise InputError(f"{name} is {quoted(value)}; expected a finite number {expected}")
        object.__setattr__(self, name, float(value))

    def _check_integer(self, name, least):
        value = getattr(self, name)
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not is_whole:
            raise TypeError(f"{name} is {quoted(value)}; expected a whole number, {least} or more")
        if value < least:
            raise InputError(f"{name} is {quoted(value)}; expected {least} or more")
        if value > MOST:
            raise InputError(f"{name} is above {MOST}; expected a whole number up to that")
        object.__setattr__(self, name, int(value))

    def replace(self, **changes: Any) -> "NerveConfig":
        """A copy with some values changed, checked like a new one."""
        return self.from_dict({**self.to_dict(), **changes})

    def moves(self, return_steps: Sequence[int] = ()) -> bool:
        """Whether any walker leaves its token, so that the graph is looked at.

        Args:
            return_steps: further numbers of steps after which the walk is wanted.
        """
        return self.alpha > 0 and (self.steps is None or max(self.steps, *return_steps, 0) > 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, fit for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "NerveConfig":
        """The inverse of :meth:`to_dict`; values left out keep their defaults.

        Raises:
            InputError: a key is not a setting's name.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(
                f"unknown setting {', '.join(map(repr, unknown))}; the settings are "
                f"{', '.join(known)}"
            )
        return cls(**values)


SEED_CONFIG = NerveConfig(temperature=0.03, beta=1.0, steps=3)
"""The default settings for seeds without words, which docs/real-photographs.md has chosen on the
tuning half of its photographs."""


def default_config(words: bool) -> NerveConfig:
    """The default settings of a call, with or without words."""
    return NerveConfig() if words else SEED_CONFIG
