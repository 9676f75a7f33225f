"""Settings chosen on the tuning half, the same search for every way from clicks to labels."""

import dataclasses
import itertools
import json

from coarse import coarse_trial
from graphs import GRAPHS, graph
from photographs import Photograph
from segmenters import DEFAULT, WALKER
from trials import COUNTS, bootstrap, tuning_trial, tuning_walks

import nerve_fast as nf
from nerve_fast.config import SEED_CONFIG
from nerve_fast.numerics import EMPTY_ROW

BETAS = (0.5, 0.75, 1.0)
SEARCHED = (
    {"normalization": ("softmax",), "temperature": (0.01, 0.02, 0.05, 0.1, 0.2), "beta": BETAS},
    {"normalization": ("relu", "l1", "shift"), "beta": BETAS},
)
STEPS = (1, 3, 10, 30)
"""Every combination, with and without calibration, is tried for every graph, with the other
settings at their defaults."""

SEARCHED_COARSE = {"temperature": (0.02, 0.05, 0.1), "beta": (0.5, 1.0), "steps": (3, 10, 30)}
SEARCHED_WALKER = {"beta": (10, 30, 130, 1000, 5000)}
SEARCH_SEEDS = 2

SWEPT = {
    "temperature": (0.01, 0.02, 0.03, 0.05, 0.1, 0.2),
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


def by_count(found: dict) -> list[float]:
    """The mean mIoU over seeds at each number of clicks."""
    return [sum(found[str(count)]) / len(found[str(count)]) for count in COUNTS]


def overall(table: list[list[float]]) -> float:
    """The mean over numbers of clicks and photographs."""
    return sum(sum(row) / len(row) for row in table) / len(table)


def chosen(name: str, photographs: list[Photograph]) -> dict:
    """The settings with the largest mIoU over photographs, numbers of clicks and seeds."""
    if name == WALKER:
        # A solution of all pixels for each set of clicks takes its time.
        candidates = [
            (settings, [by_count(tuning_trial(name, one, settings, 1)) for one in photographs])
            for settings in combinations(SEARCHED_WALKER)
        ]
    elif name in GRAPHS:
        candidates = []
        for settings in (one for part in SEARCHED for one in combinations(part)):
            found = [tuning_walks(name, one, settings, STEPS, SEARCH_SEEDS) for one in photographs]
            for steps, calibrated in itertools.product(STEPS, (True, False)):
                key = f"{steps} {json.dumps(calibrated)}"
                more = {"steps": steps, "calibrated": calibrated}
                candidates.append(({**settings, **more}, [by_count(one[key]) for one in found]))
    else:
        defaults = nf.NerveConfig().to_dict()
        changed = {k: v for k, v in SEED_CONFIG.to_dict().items() if v != defaults[k]}
        return {**changed, "calibrated": True} if name == DEFAULT else {}
    return max(candidates, key=lambda candidate: overall(candidate[1]))[0]


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
            changed = {**settings, setting: value}
            table = [
                by_count(tuning_trial(name, one, changed, SEARCH_SEEDS)) for one in photographs
            ]
            each = tuple(sum(column) / len(column) for column in zip(*table, strict=True))
            interval = bootstrap([sum(row) / len(row) for row in table])
            lines.append(Line(setting, value, each, *interval))
    return lines


def empty_rows(name: str, photographs: list[Photograph], temperature: float) -> float:
    """The share of rows of ``softmax`` that are empty as the design has it, over photographs: their
    numerators sum to no more than the threshold, and their walkers stay in place.
    """
    shares = []
    for photograph in photographs:
        tokens = graph(name, photograph)
        weights = nf.entropy_weights(tokens.entropy, nf.NerveConfig().sharpness)
        affinities = nf.cosine_affinity(tokens.q, tokens.k, weights).double()
        sums = ((affinities - 1) / temperature).exp().sum(-1)
        shares.append((sums <= EMPTY_ROW).double().mean().item())
    return sum(shares) / len(shares)
