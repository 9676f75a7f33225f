"""Settings chosen on the tuning half, the same search for every way from clicks to labels."""

import dataclasses
import itertools

from coarse import coarse_trial
from graphs import GRAPHS
from photographs import Photograph
from segmenters import WALKER
from trials import COUNTS, bootstrap, tuning_trial

SEARCHED = {
    "temperature": (0.01, 0.02, 0.05, 0.1),
    "beta": (0.5, 1.0),
    "steps": (1, 3, 10),
    "calibrated": (True, False),
}
"""Every combination is tried, for every graph, with the other settings at their defaults."""

SEARCHED_COARSE = {name: SEARCHED[name] for name in ("temperature", "beta", "steps")}
SEARCHED_WALKER = {"beta": (10, 30, 130, 1000, 5000)}
SEARCH_SEEDS = range(2)

SWEPT = {
    "temperature": (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2),
    "beta": (0.0, 0.25, 0.5, 0.75, 0.9, 1.0),
    "alpha": (0.5, 0.7, 0.9, 0.95, 0.99, 1.0),
    "steps": (1, 2, 3, 5, 10, 20, 40),
    "normalization": ("softmax", "relu", "l1", "shift"),
    "calibrated": (True, False),
}
"""One at a time, around what was chosen for DINOv2's queries and keys."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A setting's value and the mean mIoU: by the number of clicks, and over all, with its ends."""

    name: str
    value: object
    by_count: tuple[float, ...]
    mean: float
    low: float
    high: float


def combinations(searched: dict) -> list[dict]:
    return [
        dict(zip(searched, values, strict=True)) for values in itertools.product(*searched.values())
    ]


def means(name: str, photographs: list[Photograph], settings: dict, seeds) -> list[list[float]]:
    """For each photograph, the mean mIoU over seeds at each number of clicks."""
    found = (tuning_trial(name, photograph, settings, seeds) for photograph in photographs)
    return [[sum(one[str(count)]) / len(one[str(count)]) for count in COUNTS] for one in found]


def overall(table: list[list[float]]) -> float:
    return sum(sum(row) / len(row) for row in table) / len(table)


def chosen(name: str, photographs: list[Photograph]) -> dict:
    """The combination with the largest mIoU over photographs, numbers of clicks and seeds."""
    if name not in (*GRAPHS, WALKER):
        return {}
    searched = SEARCHED_WALKER if name == WALKER else SEARCHED
    # A solution of all pixels for each set of clicks takes its time.
    seeds = SEARCH_SEEDS[:1] if name == WALKER else SEARCH_SEEDS
    return max(
        combinations(searched),
        key=lambda settings: overall(means(name, photographs, settings, seeds)),
    )


def chosen_coarse(photographs: list[Photograph]) -> dict:
    """The same for coarse priors: the largest mIoU over photographs, cells and seeds."""

    def score(settings):
        values = []
        for photograph in photographs:
            for ways in coarse_trial(photograph, settings, ("walk",)).values():
                values += ways["walk"][0]
        return sum(values) / len(values)

    return max(combinations(SEARCHED_COARSE), key=score)


def swept(name: str, photographs: list[Photograph], settings: dict) -> list[Line]:
    """``SWEPT``, with intervals over photographs."""
    lines = []
    for setting, values in SWEPT.items():
        for value in values:
            table = means(name, photographs, {**settings, setting: value}, SEARCH_SEEDS)
            by_count = tuple(sum(column) / len(column) for column in zip(*table, strict=True))
            interval = bootstrap([sum(row) / len(row) for row in table])
            lines.append(Line(setting, value, by_count, *interval))
    return lines
