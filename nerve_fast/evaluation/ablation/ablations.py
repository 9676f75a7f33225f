"""What each ablation varies, and what the slides print beside it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from nerve_fast.config import NerveConfig
from nerve_fast.errors import InputError
from nerve_fast.normalization import NORMALIZATIONS

PUBLISHED = json.loads((Path(__file__).parents[1] / "published.json").read_text(encoding="utf-8"))
"""The slides' tables, mIoU in %."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """The settings of one segmentation.

    Attributes:
        config: of the walk.
        timestep: how much noise the UNet sees.
        single_head: the graph is that of the head with the least entropy, in place of all heads by
            their weights.
    """

    config: NerveConfig
    timestep: int
    single_head: bool = False

    def with_config(self, **changes) -> "Setting":
        return dataclasses.replace(self, config=self.config.replace(**changes))


@dataclasses.dataclass(frozen=True)
class Ablation:
    """One quantity that is varied while the others stay.

    Attributes:
        name: on the command line.
        title: of its table and its plot.
        axis: what the plot's horizontal axis says where the labels of settings are numbers; empty
            where they are names.
        note: what there is to know of how the slides were read.
        settings: from the setting that all others are compared with to what is tried, by label;
            that setting is among them, the last one where there are published figures.
    """

    name: str
    title: str
    axis: str
    note: str
    settings: Callable[[Setting], dict[str, Setting]]

    @property
    def published(self) -> dict[str, dict[str, float]]:
        """The mIoU in % that the slides print, by data set and label."""
        table = PUBLISHED.get(self.name)
        if table is None:
            return {}
        return {
            dataset: {label: values[column] for label, values in table["rows"].items()}
            for column, dataset in enumerate(table["columns"].values())
        }


def affinities(base: Setting) -> dict[str, Setting]:
    return {
        "Global": base.with_config(beta=1.0),
        "Local": base.with_config(beta=0.0),
        "Global + Local + RW": base,
    }


def head_fusions(base: Setting) -> dict[str, Setting]:
    return {
        "Single": dataclasses.replace(base, single_head=True),
        "Mean": base.with_config(sharpness=0.0),
        "Weighted Mean": base,
    }


def normalizations(base: Setting) -> dict[str, Setting]:
    temperatures = sorted({0.02, 0.05, 0.1, 0.2, base.config.temperature})
    settings = {
        f"softmax, τ = {temperature:.15g}": base.with_config(
            normalization="softmax", temperature=temperature
        )
        for temperature in temperatures
    }
    for name in NORMALIZATIONS:
        if name != "softmax":
            settings[name] = base.with_config(normalization=name)
    return settings


def of_values(field: str, *values: float) -> Callable[[Setting], dict[str, Setting]]:
    """Return a function that makes settings which differ in one number; it is their label."""

    def settings(base):
        tried = sorted({*values, getattr(base.config, field)})
        return {f"{value:.15g}": base.with_config(**{field: value}) for value in tried}

    return settings


def timesteps(base: Setting) -> dict[str, Setting]:
    tried = sorted({1, 25, 50, 100, 200, 300, 500, 800, base.timestep})
    return {str(timestep): dataclasses.replace(base, timestep=timestep) for timestep in tried}


ABLATIONS = {
    ablation.name: ablation
    for ablation in (
        Ablation(
            "table2",
            "Table 2: affinity maps",
            "",
            "Global is β = 1, Local β = 0, both with the same walk: the slides do not say what "
            "else their first two rows leave out.",
            affinities,
        ),
        Ablation(
            "table3",
            "Table 3: how heads are joined",
            "",
            "The slides do not say which head Single is: here, in each image, the one with the "
            "least entropy, which is what the weights tend to as they are sharpened. Mean is "
            "c = 0, Weighted Mean the default c.",
            head_fusions,
        ),
        Ablation(
            "steps",
            "Length of the walk",
            "L, steps of the walk",
            "Figure 1 of the slides shows this curve, without figures that could stand beside it. "
            "L = 0 is the prior on the token grid.",
            of_values("steps", 0, 1, 2, 3, 5, 10, 15, 20, 30, 50),
        ),
        Ablation(
            "alpha",
            "Probability of moving on",
            "α, probability that a walker moves on",
            "Not in the slides. α = 0 is the prior on the token grid.",
            of_values("alpha", 0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99),
        ),
        Ablation(
            "beta",
            "Share of the global part",
            "β, share of the global part in the transition matrix",
            "Not in the slides beyond Table 2.",
            of_values("beta", 0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0),
        ),
        Ablation(
            "normalization",
            "How affinities become probabilities",
            "",
            "The slides do not say which it is.",
            normalizations,
        ),
        Ablation(
            "timestep",
            "Noise that the UNet sees",
            "timestep of the scheduler, of 1000",
            "Not in the slides.",
            timesteps,
        ),
    )
}
"""All ablations, by name."""


def refuse_doubles(name: str, base: Setting) -> None:
    """Raise an :class:`InputError` where ``base`` is another row of the ablation as well."""
    labels = [label for label, of in ABLATIONS[name].settings(base).items() if of == base]
    if len(labels) > 1:
        raise InputError(
            f"{name} compares {labels[0]} with {labels[-1]}, which are the same with these flags; "
            f"change those of the walk, or leave {name} out"
        )
