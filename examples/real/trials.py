"""One segmenter on one photograph from many sets of clicks, scored; kept, so that a run resumes."""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence

import torch
from clicks import drawn_clicks
from graphs import graph
from packages import real_folder
from photographs import Photograph
from segmenters import distribution, labelled, segment, walked
from torch import Tensor

import nerve_fast as nf
from nerve_fast.evaluation.metrics import boundary_counts, boundary_iou, confusion_matrix, mean_iou
from nerve_fast.imaging.images import to_tensor
from nerve_fast.priors.seeds import Seeds
from nerve_fast.refiners.pamr import PAMR, pamr
from nerve_fast.refiners.walk import calibration
from nerve_fast.utils.files import written_whole

VERSION = 2
"""Raised where what is computed changes, so that nothing old is taken for it."""

COUNTS = (1, 3, 10)
SEEDS = 5
HAND = "hand"

Sets = dict[str, list[Seeds]]
"""Sets of clicks by their number a label."""


@functools.lru_cache(maxsize=64)
def click_sets(photograph: Photograph, seeds: int = SEEDS) -> Sets:
    """Drawn by the first ``seeds`` seeds, and the hand-made ones where there are any."""
    labels = len(photograph.labels)
    sets = {
        str(count): [drawn_clicks(photograph.truth, labels, count, seed) for seed in range(seeds)]
        for count in COUNTS
    }
    if photograph.clicks is not None:
        sets[HAND] = [photograph.clicks]
    return {
        count: [as_seeds(photograph, clicks) for clicks in some] for count, some in sets.items()
    }


def as_seeds(photograph: Photograph, clicks) -> Seeds:
    points = dict(zip(photograph.labels, clicks, strict=True))
    return Seeds.of(photograph.image.size, points=points)


def kept(what: dict, photograph: Photograph, make: Callable):
    """The JSON that ``make()`` gives, from the cache where it was made before."""
    key = {"version": VERSION, "photograph": photograph.digest, **what}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = real_folder() / "trials" / photograph.name / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())["result"]
    result = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps({**key, "result": result}))
    return result


def trial(name: str, photograph: Photograph, settings: dict) -> dict:
    """Without and with PAMR (``plain``, ``refined``), mIoU and Boundary IoU by the number of clicks
    a label: two lists over the seeds.
    """

    def make():
        sets = click_sets(photograph)
        scores = segment(name, photograph, flat(sets), settings)
        return {
            "plain": scored(photograph, sets, scores, both),
            "refined": scored(photograph, sets, refiner(photograph)(scores), both),
        }

    return kept({"segmenter": name, "settings": settings, "seeds": SEEDS}, photograph, make)


def tuning_trial(name: str, photograph: Photograph, settings: dict, seeds: int) -> dict:
    """mIoU by the number of clicks a label: a list over the seeds; no hand-made clicks."""

    def make():
        sets = {str(count): click_sets(photograph, seeds)[str(count)] for count in COUNTS}
        scores = segment(name, photograph, flat(sets), settings)
        return {count: one[0] for count, one in scored(photograph, sets, scores, miou).items()}

    return kept({"tuning": name, "settings": settings, "seeds": seeds}, photograph, make)


def tuning_walks(
    name: str, photograph: Photograph, settings: dict, steps: Sequence[int], seeds: int
) -> dict:
    """:func:`tuning_trial` of one walk at many numbers of steps, with and without calibration: by
    ``"STEPS true"`` and ``"STEPS false"``.
    """

    def make():
        sets = {str(count): click_sets(photograph, seeds)[str(count)] for count in COUNTS}
        tokens = graph(name, photograph)
        priors = [one.prior(tokens.grid, photograph.labels) for one in flat(sets)]
        config = nf.NerveConfig(**settings)
        found = {}
        for count, walks in walked(tokens, priors, config, steps).items():
            divisors = [
                calibration(one, prior, config.alpha, count)
                for one, prior in zip(walks, priors, strict=True)
            ]
            for calibrated in (True, False):
                scores = [
                    distribution(one, tokens.grid, divisor if calibrated else None)
                    for one, divisor in zip(walks, divisors, strict=True)
                ]
                values = scored(photograph, sets, scores, miou)
                key = f"{count} {json.dumps(calibrated)}"
                found[key] = {clicks: one[0] for clicks, one in values.items()}
        return found

    what = {"walks": name, "settings": settings, "steps": list(steps), "seeds": seeds}
    return kept(what, photograph, make)


def flat(sets: Sets) -> list[Seeds]:
    return [seeds for some in sets.values() for seeds in some]


def scored(photograph: Photograph, sets: Sets, scores: Sequence[Tensor], score: Callable) -> dict:
    """What ``score`` gives for the labels of each set, as a list a score over the seeds."""
    remaining = iter(scores)
    found = {}
    for count, some in sets.items():
        values = [score(labelled(next(remaining), photograph, one), photograph) for one in some]
        found[count] = [list(column) for column in zip(*values, strict=True)]
    return found


def refiner(photograph: Photograph) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """PAMR with its default settings, of scores ``(K, h, w)`` of one size."""
    settings = PAMR()
    pixels = to_tensor(photograph.image)

    def refine(scores):
        # Its weights are the same for all.
        maps = pamr(pixels, torch.cat(list(scores)), settings.iterations, settings.dilations)
        return list(maps.split([len(one) for one in scores]))

    return refine


def miou(labels: Tensor, photograph: Photograph) -> tuple[float, ...]:
    classes = len(photograph.labels)
    return (mean_iou(confusion_matrix(labels, photograph.truth, classes, unlabelled=True)),)


def both(labels: Tensor, photograph: Photograph) -> tuple[float, ...]:
    counts = boundary_counts(labels, photograph.truth, len(photograph.labels))
    return (*miou(labels, photograph), boundary_iou(counts)[0])


def bootstrap(values: Sequence[float], draws: int = 10_000) -> tuple[float, float, float]:
    """The mean over photographs, and the ends of its 95 % bootstrap interval."""
    each = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(each), (draws, len(each)), generator=generator)
    means = each[drawn].mean(1).sort().values
    low, high = means[round(0.025 * draws)], means[round(0.975 * draws) - 1]
    return each.mean().item(), low.item(), high.item()
