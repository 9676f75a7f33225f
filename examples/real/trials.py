"""One segmenter on one photograph from many sets of clicks, scored; kept, so that a run resumes."""

import hashlib
import json

import torch
from clicks import drawn_clicks
from packages import real_folder
from photographs import Photograph
from segmenters import Clicks, labelled, segment
from torch import Tensor

from nerve_fast.evaluation.metrics import boundary_counts, boundary_iou, confusion_matrix, mean_iou
from nerve_fast.imaging.images import to_tensor
from nerve_fast.refiners.pamr import PAMR, pamr
from nerve_fast.utils.files import written_whole

VERSION = 1
"""Raised where what is computed changes, so that nothing old is taken for it."""

COUNTS = (1, 3, 10)
SEEDS = range(5)
HAND = "hand"


def click_sets(photograph: Photograph, seeds=SEEDS) -> dict[str, list[Clicks]]:
    """Sets of clicks by their number a label: drawn, and the hand-made ones where there are any."""
    labels = len(photograph.labels)
    sets = {
        str(count): [drawn_clicks(photograph.truth, labels, count, seed) for seed in seeds]
        for count in COUNTS
    }
    if photograph.clicks is not None:
        sets[HAND] = [photograph.clicks]
    return sets


def kept(what: dict, photograph: Photograph, make):
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


def tuning_trial(name: str, photograph: Photograph, settings: dict, seeds=SEEDS) -> dict:
    """mIoU by the number of clicks a label, a list over the seeds; no hand-made clicks."""
    what = {"tuning": name, "settings": settings, "seeds": len(seeds)}

    def make():
        sets = click_sets(photograph, seeds)
        sets.pop(HAND, None)
        found = scored(name, photograph, sets, settings, lambda labels: miou(labels, photograph))
        return {count: values[0] for count, values in found.items()}

    return kept(what, photograph, make)


def trial(name: str, photograph: Photograph, settings: dict, refined: bool) -> dict:
    """mIoU and Boundary IoU by the number of clicks a label: two lists over the seeds."""
    what = {"segmenter": name, "settings": settings, "refined": refined}

    def make():
        refine = refiner(photograph) if refined else None
        sets = click_sets(photograph)
        return scored(name, photograph, sets, settings, lambda x: both(x, photograph), refine)

    return kept(what, photograph, make)


def scored(name, photograph, sets, settings, score, refine=None) -> dict:
    """What ``score`` gives for the labels of each set, as a list a score over the seeds."""
    flat = [clicks for some in sets.values() for clicks in some]
    scores = segment(name, photograph, flat, settings)
    scores = iter(refine(scores) if refine else scores)
    found = {}
    for count, some in sets.items():
        values = []
        for _ in some:
            values.append(score(labelled(next(scores), photograph.image.size)))
        found[count] = [list(column) for column in zip(*values, strict=True)]
    return found


def refiner(photograph: Photograph):
    """PAMR with its default settings, of a list of scores ``(K, h, w)`` of one size."""
    settings = PAMR()
    pixels = to_tensor(photograph.image)

    def refine(scores):
        # Its weights are the same for all.
        maps = pamr(pixels, torch.cat(scores), settings.iterations, settings.dilations)
        return maps.split([len(one) for one in scores])

    return refine


def miou(labels: Tensor, photograph: Photograph) -> tuple[float]:
    classes = len(photograph.labels)
    return (mean_iou(confusion_matrix(labels, photograph.truth, classes, unlabelled=True)),)


def both(labels: Tensor, photograph: Photograph) -> tuple[float, float]:
    counts = boundary_counts(labels, photograph.truth, len(photograph.labels))
    return (*miou(labels, photograph), boundary_iou(counts)[0])


def bootstrap(values: Tensor, draws: int = 10_000) -> tuple[float, float, float]:
    """The mean over photographs, and the ends of its 95 % bootstrap interval."""
    values = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (draws, len(values)), generator=generator)
    means = values[drawn].mean(1).sort().values
    low, high = means[round(0.025 * draws)], means[round(0.975 * draws) - 1]
    return values.mean().item(), low.item(), high.item()
