"""Which files are results, and which of them make a row."""

import json

import pytest

from nerve_fast import InputError
from nerve_fast.cli import main as cli
from nerve_fast.evaluation.table import report


def test_two_of_the_same_are_refused(result):
    one, other = result("voc21", 0.5), result("voc21", 0.6)
    message = r"0\.json and .*1\.json are both of voc21, preset nerve"
    with pytest.raises(InputError, match=message):
        report([one, other], None)
    report([one, result("voc21", 0.6, models__layers=["a"])], None)
    with pytest.raises(InputError, match=message):
        report([one, other, result("voc21", 0.6, settings__threshold=0.2)], None)


def test_settings_of_one_method_stand_below_each_other(result):
    """Those of all data sets together that were changed alike, whatever the presets have."""
    changed = {"settings__logit_scale": 45}
    paths = [
        result("voc21", 0.5, preset="sclip"),
        result("voc20", 0.6, preset="sclip", **changed),
        result("voc21", 0.7, preset="sclip", **changed),
        result("voc20", 0.8, preset="sclip"),
    ]
    text = report(paths, None)
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| **SCLIP")]
    assert [row[1].strip() for row in rows] == ["**SCLIP**", "**SCLIP†**"]
    assert [(row[4].strip()[2:6], row[7].strip()[2:6]) for row in rows] == [
        ("50.0", "80.0"),
        ("70.0", "60.0"),
    ]
    first, second = text.split("\n(1) ")[1].split("\n(2) ")
    assert "- As the preset has it." in first
    assert "- V21: logit scale 45 for 65" in second
    assert "- V20: logit scale 45 for 40" in second


def test_files_of_another_shape_are_named(result, tmp_path, capsys):
    good = json.loads(result("voc21", 0.5).read_text())
    path = tmp_path / "odd.json"

    def changed(**parts):
        run = {**good["run"], **{name: part for name, part in parts.items() if name in good["run"]}}
        return {**good, "run": run, **{name: parts[name] for name in parts if name in good}}

    documents = [
        changed(miou="much"),
        changed(miou=[1]),
        changed(complete=False, images="few"),
        changed(dataset={"name": "voc21", "images": 5, "classes": []}),
        changed(dataset={"name": "voc21", "images": 5, "classes": 3}),
        changed(dataset={"name": ["voc21"], "images": 5, "classes": ["background"]}),
        changed(preset={"name": "nobody", "note": ""}),
        changed(preset={"name": "nerve", "note": 3}) | {"miou": "x"},
        changed(settings={**good["run"]["settings"], "unknown": 1}),
        changed(refiner={"name": "walk", "config": {"unknown": 1}}),
        changed(refiner={"name": "walk", "config": 7}),
        changed(models={"clip": 5}),
    ]
    texts = [json.dumps(document) for document in documents]
    texts += ["[" * 10**5, "", '"x"', "\x00", '{"run": ' * 10**4]
    for text in texts:
        path.write_text(text)
        assert cli.main(["report", str(path)]) == 2, text
        said = capsys.readouterr()
        assert said.err.startswith(f"nerve-fast: {path}: ")
        assert said.err.count("\n") == 1
        assert said.out == ""
