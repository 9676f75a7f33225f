import json

import pytest

from nerve_fast import NerveConfig
from nerve_fast.evaluation.differences import USUAL
from nerve_fast.evaluation.presets import clip_of, note_of, settings_of


@pytest.fixture
def result(tmp_path):
    """``result(dataset, miou, **run)``: a file as ``evaluate`` leaves it."""
    files = []

    def make(dataset, miou, preset="nerve", images=50, complete=True, **run):
        settings = vars(settings_of(preset, dataset, dataset in ("voc21", "pc60", "coco-object")))
        first = "background" if dataset in ("voc21", "pc60", "coco-object") else "cat"
        refiner = {"name": settings["refiner"]}
        if refiner["name"] == "walk":
            refiner["config"] = NerveConfig().to_dict()
        document = {
            "miou": miou,
            "images": images,
            "complete": complete,
            "run": {
                "dataset": {
                    "name": dataset,
                    "images": 50 if complete else 1449,
                    "classes": [first],
                },
                "preset": {"name": preset, "note": note_of(preset)},
                "settings": dict(settings),
                "refiner": refiner,
                "seed": 0,
                "models": {"clip": clip_of(preset, dataset), **USUAL},
            },
        }
        for place, value in run.items():
            group, _, name = place.partition("__")
            target = document["run"][group]
            target.update({name: value}) if name != "config" else target["config"].update(value)
        files.append(tmp_path / f"{len(files)}.json")
        files[-1].write_text(json.dumps(document))
        return files[-1]

    return make
