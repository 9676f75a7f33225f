import json

import pytest

from nerve_fast.cli import main as cli
from nerve_fast.evaluation.ablation.ablations import PUBLISHED
from nerve_fast.evaluation.presets import iseg_of
from nerve_fast.evaluation.published import COLUMNS
from nerve_fast.evaluation.table import report

FIGURES = dict(zip(COLUMNS, [69.7, 37.7, 43.3, 90.1, 24.0, 43.4, 28.8], strict=True))


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


def test_strings_of_files_are_shown_as_they_are(result):
    name = "<b>*x*</b>|`y`\x1b[2J"
    text = report([result("folder", 0.5, preset="fixed", models__clip=name)], None)
    assert r"clip \<b\>\*x\*\</b\>\|\`y\`" in text
    assert "\x1b" not in text
