"""What a run leaves behind."""

import dataclasses

import pytest

from nerve_fast import InputError
from nerve_fast.bench.harness.results import Results, load, own, problems, updated
from nerve_fast.bench.harness.row import Row


def test_an_interrupted_run_leaves_earlier_results_whole(machine, tmp_path, row):
    output = tmp_path / "deep" / "here.json"
    first = Results(machine, output, tier="quick")
    first.add(row("blocked dense", 1.0))
    first.finish()
    earlier = output.read_text()
    second = Results(machine, output, tier="full")
    second.add(row("blocked dense", 2.0))
    assert output.read_text() == earlier
    assert load(second.unfinished)["rows"][0]["seconds"] == 2.0
    second.finish()
    assert load(output)["tier"] == "full"
    assert [path.name for path in output.parent.iterdir()] == ["here.json"]


@pytest.mark.parametrize("name", ["here.json", "here.unfinished.json"])
def test_results_take_the_place_of_results_alone(machine, tmp_path, name):
    output = tmp_path / "here.json"
    Results(machine, output, tier="quick").finish()
    Results(machine, output, tier="quick").finish()
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=f"{name}: was not made by this command"):
        Results(machine, output, tier="full")
    assert (tmp_path / name).read_text() == "{}"


def test_a_part_measured_again_takes_the_place_of_its_rows(document, row):
    rows = (row("ours", 1.0), row("theirs", 2.0), row("theirs", 3.0, tokens=1024))
    earlier = {**document, "rows": [dataclasses.asdict(one) for one in rows]}
    again = [row("theirs", 0.5, note="faster"), row("others", 9.0)]
    rows = [Row(**one) for one in updated(earlier, again, "abc1234")["rows"]]
    assert [(one.contender, one.seconds, one.note) for one in rows] == [
        ("ours", 1.0, ""),
        ("theirs", 0.5, "faster; commit abc1234"),
        ("theirs", 3.0, ""),
        ("others", 9.0, "commit abc1234"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no json", "not results that can be read"),
        ("[]", "its schema is None; expected 2: measure again"),
        ('{"schema": 1}', "its schema is 1; expected 2: measure again"),
        ('{"schema": 2}', "damaged: KeyError"),
        ('{"schema": 2, "rows": [{"x": 1}]}', "damaged: TypeError"),
    ],
)
def test_what_is_no_results_is_refused(tmp_path, text, said):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        load(path)


def test_ours_is_the_way_of_auto(row):
    rows = [row("b", 1.0), row("a", 2.0, ours=True), row("c", 3.0, ours=True, taken=True)]
    assert own(rows).contender == "c"
    assert own(rows[:2]).contender == "a"
    assert own(rows[:1]) is None
    assert len(list(problems([*rows, row("a", 1.0, 64)]))) == 2
