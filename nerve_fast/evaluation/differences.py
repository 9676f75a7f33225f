"""The name of a run in tables, and its differences from its preset."""

import dataclasses
import json
from pathlib import Path

from nerve_fast.backbones.diffusion import DEFAULT_DIFFUSION
from nerve_fast.config import NerveConfig
from nerve_fast.evaluation.ablation.ablations import PUBLISHED
from nerve_fast.evaluation.presets import (
    by_authors,
    clip_of,
    diffusion_of,
    graph_of,
    iseg_of,
    settings_of,
)

USUAL = {
    "diffusion": DEFAULT_DIFFUSION,
    "layers": "of the last up-block",
    "timestep": 100,
}
"""The models of a run that names no others."""


def method_of(run: dict) -> str:
    """Return the name of the method as Table 1 spells it, or would."""
    prior, refiner = run["settings"]["prior"], run["refiner"]["name"]
    method = {"walk": "NERVE", "iseg": f"{prior} + iSeg's refinement"}.get(refiner, prior)
    if method == refiner == "cliper":
        method = "CLIPer + diffusion"
    rows = [*PUBLISHED["table1"]["rows"], *PUBLISHED["beside"]["rows"]]
    names = {row["method"].casefold(): row["method"] for row in rows}
    return names.get(method.casefold(), method)


def name_of(run: dict) -> str:
    """Describe a measured row: the preset, the prior and the refiner."""
    prior, refiner = run["settings"]["prior"], run["refiner"]["name"]
    return f"preset {run['preset']['name']}: {prior}" + f" + {refiner}" * (refiner != "none")


def is_tiny(run: dict) -> bool:
    """Say whether a run used the models that ship."""
    return "nerve_fast/tiny/models" in Path(run["models"]["clip"]).as_posix()


def is_authors(run: dict) -> bool:
    """Say whether a run has the settings that its method's authors publish."""
    named = run["preset"]["name"]
    return by_authors(named) and not (model_differences(run) or changed(run))


def postprocessed(run: dict) -> bool:
    """Say whether labels were sharpened along the image's edges, as Table 1's column has it."""
    return run["refiner"]["name"] in ("pamr", "densecrf")


def method_key(run: dict) -> list:
    """Return what identifies a method on all data sets."""
    models = {name: run["models"].get(name) for name in ("clip", "graph", *USUAL)}
    if models["clip"] == clip_of(run["preset"]["name"], run["dataset"]["name"]):
        # A preset may have another on another data set, and is one method.
        models["clip"] = None
    refiner = dict(run["refiner"])
    if refiner["name"] == "iseg":
        # Other settings on other data sets are no other method.
        for name in iseg_of(run["dataset"]["name"]):
            refiner.pop(name, None)
    return [name_of(run), refiner, models, run["seed"]]


def model_differences(run: dict) -> list[str]:
    """List the differences between a run and its preset that apply on every data set."""
    models, refiner = run["models"], run["refiner"]
    preset = run["preset"]["name"]
    expected = {"clip": clip_of(preset, run["dataset"]["name"]), **USUAL}
    layers, timestep = diffusion_of(preset)
    if layers:
        expected |= {"layers": list(layers), "timestep": timestep}
    found = [
        f"{name} {models[name]} for {usual}"
        for name, usual in expected.items()
        if models.get(name, usual) != usual
        and not (is_tiny(run) and name in ("clip", "diffusion"))
        and not ("graph" in models and name == "layers" and models[name] == "the last one")
    ]
    graph, usual_graph = models.get("graph"), graph_of(run["preset"]["name"])
    if graph != usual_graph and refiner["name"] in ("walk", "iseg"):
        source, usual_source = (one or "the diffusion model" for one in (graph, usual_graph))
        found = [f"graph {source} for {usual_source}", *found]
    usual = NerveConfig().to_dict()
    found += [
        f"{name} {value} for {usual[name]}"
        for name, value in refiner.get("config", {}).items()
        if value != usual[name]
    ]
    if refiner["name"] == "iseg":
        found.append(
            f"iSeg's refinement alone, of the prior {run['settings']['prior']} in place of iSeg's "
            "own cross-attention"
        )
    if run["seed"] != 0:
        found.append(f"seed {run['seed']} for 0")
    return found


def setting_differences(run: dict) -> list[str]:
    """List the differences between a run and its preset on the run's data set."""
    usual = expected_of(run)
    return [
        f"{name.replace('_', ' ')} {value} for {usual[name]}"
        for name, value in changed(run).items()
    ]


def changed(run: dict) -> dict:
    """Return the settings of a run that differ from those of the preset on its data set."""
    found = {**run["settings"], **run["refiner"]}
    return {name: found[name] for name, value in expected_of(run).items() if found[name] != value}


def expected_of(run: dict) -> dict:
    """Return the values that the preset, or iSeg's authors, have for a run's settings."""
    dataset = run["dataset"]
    preset = settings_of(
        run["preset"]["name"], dataset["name"], dataset["classes"][0] == "background"
    )
    # As files have them.
    known = json.loads(json.dumps(dataclasses.asdict(preset)))
    expected = {name: known[name] for name in run["settings"]}
    if run["refiner"]["name"] == "iseg":
        authors = iseg_of(dataset["name"])
        expected |= {name: authors[name] for name in authors if name in run["refiner"]}
    return expected
