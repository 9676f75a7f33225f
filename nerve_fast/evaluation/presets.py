"""The settings of each method on each data set; ``presets.json`` holds the table.

The settings of the refiner ``iseg`` depend on the data set and not on the preset: they are those of
the preset ``iseg``.
"""

import dataclasses
import json
from pathlib import Path

from nerve_fast.certainty import Certainty, Threshold
from nerve_fast.errors import InputError

_TABLE = json.loads(Path(__file__).with_name("presets.json").read_text(encoding="utf-8"))

PRESETS = tuple(_TABLE)
REFINERS = ("none", "pamr", "densecrf", "regions", "iseg", "cliper", "walk")

COMMON = ("prior", "refiner", "vocabulary", "protocol", "templates", "rule")
"""Settings that a preset has alike on all data sets."""

_LIKE = {"voc20": "voc21", "pc59": "pc60"}
"""Data sets that differ from one that iSeg was run on in their background alone."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How images of one data set are segmented, apart from the models.

    Attributes:
        prior: name of the prior.
        refiner: what improves it, one of :data:`REFINERS`.
        vocabulary: which words stand for the classes, see :func:`nerve_fast.datasets.words`.
        protocol: how images are brought to CLIP, see :class:`nerve_fast.PriorConfig`.
        resolution: short side of what CLIP sees, in pixels; ``None`` is 1.5 times the size that the
            checkpoint was trained at.
        window, stride: of the sliding window, in pixels; ``None`` shows the whole image.
        logit_scale: similarities are multiplied by it before the softmax over words.
        threshold: where the largest probability is below it, or below that of its class, there is
            background; for a data set without a background, no class.
        under: the class that is there instead; ``None`` is that background.
        area_threshold: a class that covers no larger share of what is not background is left out.
        score: CLIPer's rule in place of the two: see :func:`nerve_fast.evaluation.rules.cliper`.
        background, stretched: of that rule.
        networks: what the prior looks with besides its network of images and words, by name; see
            :class:`nerve_fast.PriorConfig`.
        layer, cut: of the prior ``cliper``; the refiner of that name has the same cut.
        mask, confidence, box, visual, visual_stuff: of the prior ``car``.
        support: of the prior ``ovdiff``.
        confidence, reweighting, prompt, heads, iterations, step_size: of the prior ``iseg``.
        templates: of its prompts; ``None`` is the prior's own.
        rule: how scores become labels: ``threshold`` is the SCLIP line's, the others are
            :func:`nerve_fast.evaluation.rules.nearest` and ``stretched``; ``painted`` takes the
            labels that the prior gives to pixels, or none where it gives none.
    """

    prior: str
    refiner: str
    vocabulary: str
    protocol: str = "fit"
    resolution: int | None = None
    window: int | None = None
    stride: int | None = None
    logit_scale: float = 40.0
    threshold: Threshold = 0.0
    area_threshold: float = 0.0
    score: float | None = None
    background: float | None = None
    stretched: bool = False
    networks: tuple[tuple[str, str], ...] = ()
    under: str | None = None
    templates: str | None = None
    rule: str = "threshold"
    layer: int = -1
    cut: float = 0.2
    mask: float = 0.4
    confidence: float = 0.6
    box: float = 0.4
    visual: tuple[str, ...] = ("circle", "blur")
    visual_stuff: tuple[str, ...] = ("blur", "gray")
    support: int = 32
    reweighting: tuple[float, ...] = (0.6, 0.4, 0.8)
    prompt: str = "a photograph of {} and other object and background"
    heads: str = "all"
    iterations: int = 8
    step_size: float = 0.015

    def __post_init__(self):
        if self.refiner not in REFINERS:
            raise InputError(f"refiner is {self.refiner!r}; expected one of {', '.join(REFINERS)}")
        Certainty(self.threshold, self.under)
        # As JSON has them they are lists.
        for name in ("visual", "visual_stuff", "reweighting"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


def note_of(preset: str) -> str:
    """Return where the settings of a preset come from, and how they differ from their source."""
    return _of(preset)["note"]


def clip_of(preset: str, dataset: str | None = None) -> str:
    """Return the hub id of the CLIP that a preset has on a data set; ``None`` is on most."""
    entry = _of(preset)
    return entry.get("sets", {}).get(dataset, {}).get("clip", entry["clip"])


def graph_of(preset: str) -> str | None:
    """Return the hub id of the graph that a preset walks on; ``None`` is the diffusion model."""
    return _of(preset).get("graph")


def datasets_of(preset: str) -> tuple[str, ...] | None:
    """Return the data sets that a preset has settings for; ``None`` is any."""
    entry = _of(preset)
    return None if "every" in entry else tuple(entry["sets"])


def by_authors(preset: str) -> bool:
    """Say whether the settings of a preset are those that its method's authors publish."""
    return not _of(preset).get("ours", False)


def diffusion_of(preset: str) -> tuple[tuple[str, ...] | None, int | None]:
    """Return the layers and the time step of the diffusion model that a preset was made for."""
    entry = _of(preset)
    layers = entry.get("layers")
    return tuple(layers) if layers else None, entry.get("timestep")


def iseg_of(dataset: str) -> dict:
    """Return iSeg's settings on a data set: its authors' ones, or VOC's where they give none."""
    rows = _TABLE["iseg"]["sets"]
    row = rows.get(_LIKE.get(dataset, dataset), rows["voc21"])
    return {name: row[name] for name in ("iterations", "step_size")}


def settings_of(preset: str, dataset: str, has_background: bool, **changes) -> Settings:
    """Return the settings of a preset on a data set.

    Args:
        preset: one of :data:`PRESETS`.
        dataset: the data set's name.
        has_background: whether it has one; without, nothing is under the preset's threshold.
        changes: values to take in place of the preset's; those that are ``None`` change nothing.

    Raises:
        InputError: there is no such preset, or it says nothing of the data set; or a change makes
            no sense.
    """
    entry = _of(preset)
    row = entry.get("every") or entry["sets"].get(dataset)
    if row is None:
        every = [name for name, other in _TABLE.items() if "every" in other]
        raise InputError(
            f"the preset {preset} has no settings for the data set {dataset}, only for "
            f"{', '.join(entry['sets'])}; take the preset {' or '.join(every)}"
        )
    common = {name: entry[name] for name in COMMON if name in entry}
    changes = {name: value for name, value in changes.items() if value is not None}
    if not has_background:
        row = {**row, "threshold": 0.0, "area_threshold": 0.0}
    row = {name: value for name, value in row.items() if name != "clip"}
    for name, said in (("threshold", "threshold"), ("under", "background")):
        if name in changes and entry.get("rule") in ("nearest", "painted"):
            raise InputError(
                f"{said} is {changes[name]}; the preset {preset} labels each pixel by its best "
                "class, whatever its score: leave it out"
            )
        if name in changes and "score" in row:
            raise InputError(
                f"{said} is {changes[name]}; the preset {preset} has a rule of its own, with score "
                f"{row['score']} and background {row['background']}"
            )
    if "under" in changes and not {**row, **changes}.get("threshold"):
        raise InputError(
            f"background is {changes['under']}, the class of what is under a threshold, and there "
            "is none; set the threshold too"
        )
    if "window" in changes and "stride" not in changes:
        changes["stride"] = changes["window"] // 2
    return Settings(**{**common, **row, **changes})


def _of(preset: str) -> dict:
    if preset not in _TABLE:
        raise InputError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
    return _TABLE[preset]
