"""The labels of one image, as all exports take them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nerve_fast.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """One image's labels.

    Attributes:
        image: the name of the image's file, for a person.
        stem: of the names of its results.
        label_map: ``(H, W)`` integers, indices into :attr:`labels`, −1 where there is no label.
        confidences: ``(K,)``, the mean probability of each label over its pixels, ``nan`` where it
            has none.
        labels: all ``K`` labels that the images of a run may have.
    """

    image: str
    stem: str
    label_map: np.ndarray
    confidences: np.ndarray
    labels: Sequence[str]

    def areas(self) -> dict[int, int]:
        """The number of pixels of each label that occurs, −1 among them, by its number."""
        counts = np.bincount(self.label_map.ravel() + 1)
        return {int(place) - 1: int(counts[place]) for place in counts.nonzero()[0]}

    def present(self) -> list[int]:
        """The numbers of the labels that occur."""
        return [number for number in self.areas() if number >= 0]

    def mask(self, number: int) -> np.ndarray:
        """Where a label is, ``(H, W)`` bool."""
        return self.label_map == number

    def confidence(self, number: int) -> float | None:
        """The mean probability of a label over its pixels; ``None`` where it is not known."""
        value = float(self.confidences[number])
        return None if math.isnan(value) else value


def numbered(
    label_map: np.ndarray,
    labels: Sequence[str],
    confidences: Mapping[str, float],
    vocabulary: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """A label map and its confidences with the numbers that its labels have in a vocabulary.

    Args:
        label_map: ``(H, W)`` integers, indices into ``labels``, −1 where there is no label.
        labels: of the label map, each of them in the vocabulary.
        confidences: by label, of those that have one.
        vocabulary: the ``K`` labels of all images.

    Returns:
        ``(H, W)`` int32, in which −1 stays, and ``(K,)`` float64, ``nan`` where there is none.
    """
    places = {label: number for number, label in enumerate(vocabulary)}
    # The last one is that of −1.
    renumbered = np.array([*(places[label] for label in labels), -1], np.int32)[label_map]
    known = np.full(len(vocabulary), np.nan)
    for label, value in confidences.items():
        known[places[label]] = value
    return renumbered, known


def make_folder(folder: Path) -> None:
    """Make a folder below the output folder.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{folder}: cannot be made: {reason}") from error
