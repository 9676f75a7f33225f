import json
import re
import shlex

import pytest

from nerve_fast import InputError, NerveConfig
from nerve_fast.cli import main as cli
from nerve_fast.evaluation import published
from nerve_fast.evaluation.ablation.ablations import PUBLISHED
from nerve_fast.evaluation.differences import USUAL
from nerve_fast.evaluation.presets import PRESETS, clip_of, iseg_of, note_of, settings_of
from nerve_fast.evaluation.published import COLUMNS, average_of_seven
from nerve_fast.evaluation.table import report

FIGURES = dict(zip(COLUMNS, [69.7, 37.7, 43.3, 90.1, 24.0, 43.4, 28.8], strict=True))


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
                "models": {"clip": clip_of(preset), **USUAL},
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


def lines_of(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


def test_all_that_was_published_is_in_the_slides_form(result):
    text = report([result("cityscapes", 0.4)], None)
    lines = text.splitlines()
    head = lines.index(
        "| Method |  | Post. | V21 | PC60 | C-Obj | V20 | ADE | PC59 | C-Stf "
        "| Avg of 7 | Avg of 8 |"
    )
    table = lines[head + 2 : lines.index("", head)]
    assert len(table) == len(PUBLISHED["table1"]["rows"]) + 2 == 18
    assert table[9] == (
        "| NERVE | WACV'26 | No | 69.7 | 37.7 | 43.3 | 90.1 | 24.0 | 43.4 | 28.8 | 48.1 | – |"
    )
    # CLIPer's own figures stand beside NERVE's, and have Cityscapes.
    assert table[11] == (
        "| CLIPer + diffusion | ICCV'25 | No | 71.6 | 39.0 | 44.4 | 90.3 | 24.5 | 44.0 | 29.7 "
        "| 49.1 | 48.1 |"
    )
    assert table[3] == "| CLIP-DIY | WACV'24 | No | 59.0 | – | 30.4 | – | – | – | – | – | – |"
    # Averages that the slides print, and the means of the seven figures that they print.
    averages = [[cell.strip() for cell in table[row].split("|")[-3:-1]] for row in (5, 7)]
    assert averages == [["39.0", "38.2"], ["40.0", "39.4"]]
    assert "| (1) | preset nerve: naclip + walk | cityscapes | 40.0 |" in lines


def test_printed_averages_are_means_of_seven_or_of_eight():
    """A mean that seven figures do not have leaves the eighth a figure that can be."""
    for row in PUBLISHED["table1"]["rows"]:
        if row["average"] is None:
            continue
        if row.get("average_of") == 8:
            assert 0 < 8 * row["average"] - sum(row["miou"]) < 100
            assert abs(row["average"] - average_of_seven(row)) > 0.4
        else:
            assert row["average"] == pytest.approx(average_of_seven(row), abs=0.051)


def commands_of(text):
    """Commands for what was not measured, by row; ``None`` where no preset makes it."""
    found = {}
    for line in text.split("## What was not measured")[1].splitlines():
        if line.startswith("- "):
            name, _, what = line[2:].partition(": ")
            found[name] = what.strip("`") if what.startswith("`") else None
    return found


def runs_of(command):
    """Each run of a command, with its loop undone."""
    loop = re.fullmatch(r"for set in (.*); do (.*); done", command)
    if loop is None:
        return [command]
    return [loop[2].replace("$set", name) for name in loop[1].split()]


def test_each_row_without_a_result_has_the_command_that_makes_it():
    text = report([], None)
    assert "## What was measured" not in text
    commands = commands_of(text)
    assert len(commands) == 18
    for name, command in commands.items():
        if command is None:
            # A preset that does not exist yet.
            assert name.partition(",")[0].casefold() not in PRESETS
            continue
        for run in runs_of(command):
            options = cli._parser().parse_args(shlex.split(run)[1:])
            assert options.root.name == options.dataset
            # The preset has settings for it, or this raises.
            settings_of(options.preset, options.dataset, True)
    assert len(runs_of(commands["SCLIP"])) == 8
    assert len(runs_of(commands["NERVE"])) == 7
    assert commands["SCLIP, post-processed"].endswith("--preset sclip --refiner pamr; done")
    assert "--preset clearclip-l14" in commands["ClearCLIP, post-processed"]


def test_presets_that_come_later_have_their_commands(monkeypatch):
    row = next(row for row in PUBLISHED["table1"]["rows"] if row["method"] == "CaR")
    monkeypatch.setattr(published, "PRESETS", ("car",))
    monkeypatch.setattr(published, "datasets_of", lambda preset: ("voc21", "coco-object"))
    assert published.command_of(row, ()) == (
        "for set in voc21 coco-object; do nerve-fast evaluate --dataset $set --root ROOTS/$set "
        "--preset car; done"
    )
    assert published.command_of(row, ("voc21",)) == (
        "nerve-fast evaluate --dataset coco-object --root ROOTS/coco-object --preset car"
    )
    assert published.command_of(row, ("voc21", "coco-object")) == ""


def test_what_was_measured_needs_no_command(result):
    paths = [result(dataset, 0.5) for dataset in FIGURES]
    assert "NERVE" not in commands_of(report(paths, None))
    assert len(runs_of(commands_of(report(paths[1:], None))["NERVE"])) == 1
    # Another prior's refinement by iSeg is no row of iSeg.
    other = result("voc21", 0.5, preset="naclip", refiner__name="iseg")
    assert "iSeg" in commands_of(report([other], None))


def test_means_over_the_classes_of_the_truth_have_a_column(result):
    path = result("voc21", 0.5, preset="cliper-diffusion")
    path.write_text(json.dumps({**json.loads(path.read_text()), "present_miou": 0.7}))
    lines = report([path, result("voc21", 0.6, preset="cliper")], None).splitlines()
    assert "| (1) CLIPer + diffusion | V21 | 50.0 | 70.0 (-1.6) | 71.6 |" in lines
    # Older results do not have it.
    assert "| (2) CLIPer | V21 | 60.0 | – | 62.5 |" in lines
    rows = [number for number, line in enumerate(lines) if " measured** |" in line]
    assert [lines[number - 1].split(" | ")[0] for number in rows] == [
        "| CLIPer",
        "| CLIPer + diffusion",
    ]
    assert all("(-" not in lines[number] and "(+" not in lines[number] for number in rows)


def test_an_average_of_eight_is_compared_with_one_of_eight(result):
    paths = [result(dataset, 0.4, preset="sclip") for dataset in (*FIGURES, "cityscapes")]
    (row,) = lines_of(report(paths, None), "| **SCLIP** | **(1)")
    assert row.endswith("| **40.0 (+1.0)** | **40.0 (+1.8)** |")


def test_a_measured_row_stands_below_its_published_one_with_the_difference(result):
    paths = [result(dataset, figure / 100 + 0.01) for dataset, figure in FIGURES.items()]
    lines = report(paths, None).splitlines()
    row = next(number for number, line in enumerate(lines) if "(1) measured" in line)
    assert lines[row - 1].startswith("| NERVE | WACV'26")
    assert lines[row].endswith("| **44.4 (+1.0)** | **29.8 (+1.0)** | **49.1 (+1.0)** | – |")
    assert "| **70.7 (+1.0)** |" in lines[row]
    # Of six there is no average.
    lines = report(paths[1:], None).splitlines()
    (row,) = (line for line in lines if "(1) measured" in line)
    assert row.startswith("| **NERVE†** | **(1) measured** | **No** | – | **38.7 (+1.0)** |")
    assert row.endswith("| – |")


def test_the_average_is_compared_with_the_mean_of_the_same_seven(result):
    figures = [59.1, 30.4, 30.5, 80.4, 16.1, 34.2, 22.4]
    pairs = zip(COLUMNS, figures, strict=True)
    paths = [result(dataset, figure / 100, preset="sclip") for dataset, figure in pairs]
    (row,) = lines_of(report(paths, None), "| **SCLIP**")
    assert row.endswith("| **39.0 (+0.0)** | – |")


@pytest.mark.parametrize(
    ("preset", "changes", "above", "said"),
    [
        ("naclip", {}, "| NACLIP | WACV'25 | Yes", None),
        ("naclip", {"refiner__name": "none"}, "| NACLIP | WACV'25 | No", None),
        ("iseg", {}, "| iSeg | arXiv'24 | No", None),
        ("naclip", {"refiner__name": "iseg"}, "| NACLIP | WACV'25 | Yes", "no such method"),
        ("fixed", {"settings__prior": "clip"}, "| NERVE | WACV'26", "prior clip for naclip"),
        ("clearclip", {}, "| ClearCLIP | ECCV'24 | Yes", "Published with post-processing only"),
        ("cliper", {}, "| CLIPer | ICCV'25 | No", None),
        ("cliper-diffusion", {}, "| CLIPer + diffusion | ICCV'25 | No", None),
        ("clip", {"settings__prior": "siglip"}, "| NACLIP | WACV'25 | Yes", "no such method"),
    ],
)
def test_a_method_is_its_prior_and_what_refines_it(result, preset, changes, above, said):
    text = report([result("voc21", 0.5, preset=preset, **changes)], None)
    lines = text.splitlines()
    row = next(number for number, line in enumerate(lines) if "(1) measured" in line)
    assert lines[row - 1].startswith(above)
    assert said is None or said in text


def test_what_differs_from_the_preset_is_listed(result):
    changed = {
        "models__clip": "my/clip",
        "models__timestep": 45,
        "refiner__config": {"alpha": 0.8},
        "settings__logit_scale": 50,
    }
    plain, other = result("voc21", 0.6), result("voc21", 0.7, images=9, complete=False, **changed)
    text = report([plain, other], None)
    assert "| **60.0 (-9.7)** |" in lines_of(text, "| **NERVE†** | **(1)")[0]
    assert "| **70.0\\* (+0.3)** |" in lines_of(text, "| **NERVE†** | **(2)")[0]
    first, second = text.split("\n(1) ")[1].split("\n(2) ")
    assert "- As the preset has it." in first
    second = second.split("\n## ")[0]
    assert [line for line in second.splitlines() if line.startswith("- ")] == [
        "- clip my/clip for openai/clip-vit-large-patch14",
        "- timestep 45 for 100",
        "- alpha 0.8 for 0.9",
        "- **V21: only 9 of 1,449 images.**",
        "- V21: logit scale 50 for 40",
    ]


def test_tiny_models_are_no_evidence(result):
    path = result("voc21", 0.1, models__clip="/x/nerve_fast/tiny/models/clip")
    assert "no evidence for NERVE" in report([path], None)


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
    rows = [line.split("|") for line in lines_of(text, "| **SCLIP")]
    assert [row[1].strip() for row in rows] == ["**SCLIP**", "**SCLIP†**"]
    assert [(row[4].strip()[2:6], row[7].strip()[2:6]) for row in rows] == [
        ("50.0", "80.0"),
        ("70.0", "60.0"),
    ]
    first, second = text.split("\n(1) ")[1].split("\n(2) ")
    assert "- As the preset has it." in first
    assert "- V21: logit scale 45 for 65" in second
    assert "- V20: logit scale 45 for 40" in second


def test_iseg_is_one_method_with_settings_of_each_data_set(result):
    paths = []
    for dataset in ("voc21", "pc60"):
        own = {f"refiner__{name}": value for name, value in iseg_of(dataset).items()}
        paths.append(result(dataset, 0.5, preset="naclip", refiner__name="iseg", **own))
    text = report(paths, None)
    # Its refinement alone is not the authors' iSeg, and the page says so.
    (row,) = lines_of(text, "| **naclip + iSeg's refinement†**")
    assert "- iSeg's refinement alone, of the prior naclip in place of iSeg's own" in text
    assert row.count("**50.0**") == 2
    assert "step size" not in text
    other = {"refiner__name": "iseg", "refiner__iterations": 8, "refiner__step_size": 0.015}
    text = report([result("pc60", 0.5, preset="naclip", **other)], None)
    assert "- PC60: iterations 8 for 5" in text
    assert "- PC60: step size 0.015 for 0.002" in text


def test_the_command_prints_and_writes_the_page(result, tmp_path, capsys):
    path = result("voc21", 0.5)
    output = tmp_path / "table.md"
    assert cli.main(["report", str(path), "-o", str(output)]) == 0
    assert capsys.readouterr().out == output.read_text(encoding="utf-8") == report([path], None)
    whole = json.loads(path.read_text())
    parts = ({}, [], {**whole["run"], "models": {}}, {**whole["run"], "dataset": None})
    damaged = [json.dumps({**whole, "run": run}) for run in parts]
    for text in ("no JSON", "{}", "[]", *damaged):
        path.write_text(text)
        assert cli.main(["report", str(path)]) == 2
        assert f"nerve-fast: {path}: " in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "nowhere.json")]) == 2


def test_a_page_overwrites_pages_alone(result, tmp_path, capsys):
    path, output = result("voc21", 0.5), tmp_path / "table.md"
    for _ in range(2):
        assert cli.main(["report", str(path), "-o", str(output)]) == 0
    output.write_text("# My notes\n")
    capsys.readouterr()
    assert cli.main(["report", str(path), "-o", str(output)]) == 2
    assert "table.md: was not made by this command" in capsys.readouterr().err
    assert output.read_text() == "# My notes\n"


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


def test_strings_of_files_are_shown_as_they_are(result):
    name = "<b>*x*</b>|`y`\x1b[2J"
    text = report([result("folder", 0.5, preset="fixed", models__clip=name)], None)
    assert r"clip \<b\>\*x\*\</b\>\|\`y\`" in text
    assert "\x1b" not in text
