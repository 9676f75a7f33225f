"""How probable a pixel's label must be, and what the pixel gets where it is less."""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from nerve_fast.errors import SettingError, quoted
from nerve_fast.utils.labels import number_of

Threshold = float | Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Certainty:
    """Thresholds, immutable and checked when made.

    Attributes:
        threshold: the least probability of a pixel's label, from 0 to 1: a number for all labels,
            or numbers by label, where a label that is not named needs none. ``None`` is none.
        background: the label of pixels under the threshold; ``None`` gives them none, which is −1.

    Raises:
        SettingError: a value is out of its range, or there is a background and no threshold.
        TypeError: a value is of the wrong type.
    """

    threshold: Threshold | None = None
    background: str | None = None

    def __post_init__(self):
        # Any: what they are is found out here.
        each: list[tuple[Any, Any]]
        if isinstance(self.threshold, Mapping):
            if not self.threshold:
                raise SettingError("{threshold} names no label; expected at least one")
            each = list(self.threshold.items())
        else:
            each = [] if self.threshold is None else [(None, self.threshold)]
        for label, value in each:
            if label is not None and not isinstance(label, str):
                raise TypeError(f"threshold has the key {quoted(label)}; expected a label")
            if not isinstance(value, numbers.Real) or isinstance(value, bool):
                raise TypeError(
                    f"threshold is {quoted(self.threshold)}; expected a number from 0 to 1, or a "
                    "dictionary of such by label"
                )
            if not 0 <= cast(float, value) <= 1:
                of = "" if label is None else f" for {quoted(label)}"
                raise SettingError(
                    "{threshold} is {0}{1}; expected a number from 0 to 1", quoted(value), of
                )
        plain = {label: float(value) for label, value in each}
        object.__setattr__(self, "threshold", plain.get(None, plain or None))
        if self.background is None:
            return
        if not isinstance(self.background, str):
            raise TypeError(f"background is {quoted(self.background)}; expected a label")
        if self.threshold is None:
            raise SettingError(
                "{background} is {0}, the label of what is under a threshold, and there is none; "
                "set {threshold} too",
                quoted(self.background),
            )

    @property
    def named(self) -> tuple[str, ...]:
        """The labels that the thresholds name."""
        return tuple(self.threshold) if isinstance(self.threshold, Mapping) else ()

    def check(self, labels: Sequence[str]) -> None:
        """Refuse names that are no label.

        Args:
            labels: as they were given; a label may be named by any of its synonyms.

        Raises:
            SettingError: a threshold or the background names none of them.
        """
        for name in self.named:
            if number_of(name, labels) is None:
                raise SettingError(
                    "{threshold} names {0}, which is none of the labels: {1}",
                    quoted(name),
                    quoted("; ".join(labels)),
                )
        self.instead(labels)

    def least(self, labels: Sequence[str]) -> Tensor | None:
        """The least probability of each of ``K`` labels, ``(K,)`` float32; ``None`` without any."""
        if self.threshold is None:
            return None
        if not isinstance(self.threshold, Mapping):
            return torch.full((len(labels),), float(self.threshold))
        least = torch.zeros(len(labels))
        for name, value in self.threshold.items():
            # Labels of other images' seeds may be named too.
            number = number_of(name, labels)
            if number is not None:
                least[number] = float(value)
        return least

    def instead(self, labels: Sequence[str]) -> int:
        """The number, among these labels, of what is under the threshold, or −1.

        Raises:
            SettingError: the background is none of them.
        """
        if self.background is None:
            return -1
        number = number_of(self.background, labels)
        if number is None:
            raise SettingError(
                "{background} is {0}, which is none of the labels: {1}",
                quoted(self.background),
                quoted("; ".join(labels)),
            )
        return number
