"""What a run leaves behind, and what is made of it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nerve_fast import InputError
from nerve_fast.bench import bars, compare, report, run
from nerve_fast.bench.case import Setting
from nerve_fast.bench.machine import Machine
from nerve_fast.bench.measure import Row
from nerve_fast.bench.results import (
    Results,
    bytes_in_words,
    in_words,
    load,
    own,
    problems,
    seconds_in_words,
    updated,
)


def row(contender, seconds, tokens=4096, *, operation="walk", low=None, high=None, **fields):
    setting = {key: fields.pop(key) for key in list(fields) if key in ("normalization", "dtype")}
    return Row(
        operation,
        contender,
        dataclasses.asdict(Setting(tokens, **setting)),
        seconds=seconds,
        low=low or (seconds and 0.99 * seconds),
        high=high or (seconds and 1.01 * seconds),
        rounds=5,
        error=1e-7,
        error_tokens=tokens,
        bound=1e-5,
        allocated=10**6,
        resident=2 * 10**6,
        **fields,
    )


@pytest.fixture
def machine():
    machine = Machine("cpu")
    machine.bandwidth = 1e10
    machine.matrix_rates = dict.fromkeys(("float32", "float16", "bfloat16"), 1e11)
    return machine


@pytest.fixture
def document(machine):
    """Results of a few rows, of another device than any."""
    results = Results(machine, None, tier="default")
    results.document["machine"].update(device="Abacus", threads=2)
    for one in (
        row("blocked dense", 0.2, ours=True, route=True, taken=True),
        row("blocked streaming", 0.8, ours=True, route=True),
        row("reference", 1.0),
        row("magic", 0.1, note="of another kind", replayed=True),
        row("gone", None, note="absent: gone is not installed"),
        row("blocked dense", 3.2, 16_384, ours=True, route=True, taken=True),
        row("broken", None, note="ValueError: no"),
    ):
        results.add(one)
    return results.document


def test_an_interrupted_run_leaves_earlier_results_whole(machine, tmp_path):
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


def test_an_interruption_within_a_run(machine, tmp_path, monkeypatch, capsys):
    output = tmp_path / "here.json"
    output.write_text("earlier")
    monkeypatch.setattr(run, "Machine", lambda device: machine)
    monkeypatch.setattr(machine, "measure_ceilings", lambda: None)
    measured = []

    def measure(case, *others):
        if measured:
            raise KeyboardInterrupt
        measured.append(case)
        return row("blocked dense", 1.0)

    monkeypatch.setattr(run, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        run.bench(machine.device, "quick", ["walk"], [64], output)
    assert output.read_text() == "earlier"
    unfinished = tmp_path / "here.unfinished.json"
    assert len(load(unfinished)["rows"]) == 1
    assert f"what was measured is in {unfinished}" in capsys.readouterr().out


def test_a_part_measured_again_takes_the_place_of_its_rows(document):
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


def test_a_part_is_not_measured_where_it_could_not_be_kept(machine, tmp_path, monkeypatch, capsys):
    from nerve_fast.cli.main import main

    monkeypatch.setattr(run, "results_folder", lambda: tmp_path)
    command = ["bench", "--op", "head entropy", "--tokens", "64", "--device", "cpu", "--update"]
    assert main(command) == 2
    assert "not results that can be read" in capsys.readouterr().err
    results = Results(machine, tmp_path / f"{machine.slug}.json", tier="full")
    results.document["machine"]["torch"] = "1.0"
    results.add(row("ours", 1.0))
    results.finish()
    assert main(command) == 2
    assert "is of torch 1.0, here is" in capsys.readouterr().err


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


def test_words():
    assert seconds_in_words(0.0012345) == "1.23 ms"
    assert seconds_in_words(123.4) == "123 s"
    assert seconds_in_words(5e-8) == "0.0500 µs"
    assert bytes_in_words(1_234_567) == "1.23 MB"
    assert bytes_in_words(0) == "0 kB"
    setting = dataclasses.asdict(Setting(16_384, labels=171, normalization="l1"))
    assert in_words(setting) == "N = 16,384, l1, float32, K = 171"


def test_ours_is_the_way_of_auto():
    rows = [row("b", 1.0), row("a", 2.0, ours=True), row("c", 3.0, ours=True, taken=True)]
    assert own(rows).contender == "c"
    assert own(rows[:2]).contender == "a"
    assert own(rows[:1]) is None
    assert len(list(problems([*rows, row("a", 1.0, 64)]))) == 2


def test_bars_and_regret(document):
    judged = {bar.what: bar for bar in bars.judge(document)}
    regret = judged["auto takes blocked dense, N = 4,096, softmax, float32: of the best time"]
    assert regret.value == 1
    assert regret.met
    reference = judged["shift, factorized, float32, N = 16,384: times faster than the reference"]
    assert reference.met is None
    assert "not measured" in str(reference)
    document["rows"][1]["seconds"] = 0.1
    (regret,) = [bar for bar in bars.judge(document) if bar.what.startswith("auto takes")]
    assert regret.value == 2
    assert regret.met is False
    assert str(regret).startswith("MISSED")


def test_a_bar_finds_its_rows(document):
    ways = {"normalization": "shift"}
    for one in (
        row("blocked factorized", 0.1, 16_384, **ways),
        row("reference", 30.0, 16_384, **ways),
    ):
        document["rows"].append(dataclasses.asdict(one))
    judged = {bar.what: bar for bar in bars.judge(document)}
    what = "shift, factorized, float32, N = 16,384"
    assert judged[f"{what}: times faster than the reference"].value == pytest.approx(300)
    assert judged[f"{what}: share of its memory"].met is False


def test_gpu_bars_take_single_steps_from_differences(document):
    document["machine"]["kind"] = "cuda"
    rows = []
    for steps, seconds in ((1, 1e-3), (50, 50e-3)):
        setting = Setting(16_384, steps=steps, dtype="bfloat16", device="cuda")
        rows.append(
            dataclasses.asdict(
                Row("walk", "triton streaming", dataclasses.asdict(setting), seconds=seconds)
            )
        )
    document["rows"] = rows
    judged = {bar.what: bar for bar in bars.judge(document)}
    bar = judged["streaming step, N = 16,384: TFLOP/s"]
    # 2 N² (320 + 32) operations in a millisecond.
    assert bar.value == pytest.approx(2 * 16_384**2 * 352 / 1e-3 / 1e12)
    assert judged["whole stage, N = 4,096: µs"].met is None


def test_comparison_tells_change_from_noise(document):
    after = json.loads(json.dumps(document))
    after["machine"]["torch"] = "99"
    after["rows"][0].update(seconds=0.4, low=0.39, high=0.41)
    after["rows"][1].update(seconds=0.81, low=0.8, high=0.82)
    after["rows"][2].update(seconds=0.5, low=0.4, high=1.2)
    del after["rows"][5]
    lines = compare.compare(document, after)
    assert lines[0].endswith(", then 99")
    assert lines[1:] == [
        " 2.00 times slower: walk, blocked dense, N = 4,096, softmax, float32",
        "3 rows within noise, 1 changed",
        "1 rows only in the first",
    ]


def test_single_rounds_need_more(document):
    before, after = row("a", 1.0), row("a", 1.2)
    assert compare.differs(before, after)
    before.rounds = 1
    assert not compare.differs(before, after)
    assert compare.differs(before, row("a", 1.4))


def test_the_page_says_where_we_lose(document):
    text = report.render({"abacus": document}, {"abacus": {}})
    assert "## Abacus, 2 threads" in text
    losses = text.split("### Where we lose")[1].split("###")[0]
    assert "magic (of another kind) takes 0.50 of our time" in losses
    assert "reference" not in losses
    assert "broken, N = 4,096, softmax, float32: ValueError: no" in losses
    assert "absent" not in losses
    assert "absent: gone is not installed" in text
    assert "| of another kind; replayed as a graph |" in text
    assert "| **blocked dense** ← auto | 200 ms |" in text
    growth = text.split("### How cost grows")[1]
    assert "| blocked dense, softmax, float32 | N | 2.00 | 4,096 | 16,384 |" in growth


def test_exponents():
    assert report.exponent([(10, 3e-3), (100, 3e-1), (1000, 30.0)]) == pytest.approx(2)


def test_the_report_is_written_with_its_pictures(document, machine, tmp_path):
    for one in (
        row("blocked factorized", 0.1, normalization="shift", ours=True, taken=True),
        row("nerve-fast, auto", 5.0, operation="pipeline", ours=True, parts={"VAE": 3.0}),
    ):
        one.operations, one.moved, one.floor = 1e9, 1e8, 0.01
        document["rows"].append(dataclasses.asdict(one))
    results = tmp_path / "results"
    results.mkdir()
    (results / "abacus.json").write_text(json.dumps(document))
    (results / "half.unfinished.json").write_text("{")
    (tmp_path / "README.md").write_text(f"a\n{report.BEGIN}\nold\n{report.END}\nb\n")
    written = report.write(results, tmp_path)
    assert {path.name for path in written} == {
        "benchmarks.md",
        "README.md",
        "abacus-growth.png",
        "abacus-roofline.png",
        "abacus-speed-up.png",
        "abacus-pipeline.png",
    }
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("a\n")
    assert readme.endswith("\nb\n")
    assert "| Abacus, 2 threads, torch" in readme
    assert "old" not in readme
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "](plots/abacus-growth.png)" in page
    assert "| VAE | the rest |" in page


def test_committed_pages_are_what_the_committed_results_give(tmp_path):
    readme = report.ROOT / "README.md"
    (tmp_path / "README.md").write_text(readme.read_text(encoding="utf-8"), encoding="utf-8")
    report.write(report.FOLDER, tmp_path)
    for name in ("README.md", "docs/benchmarks.md"):
        committed = (report.ROOT / name).read_text(encoding="utf-8")
        assert (tmp_path / name).read_text(encoding="utf-8") == committed, "python -m bench.report"


def test_the_command_measures_in_processes_of_their_own(tmp_path):
    output = tmp_path / "here.json"
    command = [sys.executable, "-m", "nerve_fast", "bench", "--quick", "--op", "head entropy"]
    done = subprocess.run(
        [*command, "--tokens", "64", "--output", str(output)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert f"3 rows, 0 failed; written to {output}" in done.stdout
    rows = load(output)["rows"]
    assert {one["contender"] for one in rows} == {"blocked", "reference", "SDPA"}
    assert all(one["seconds"] and one["resident"] is not None for one in rows)


def test_mistakes_are_named(capsys):
    from nerve_fast.cli.main import main

    assert main(["bench", "--op", "sorting"]) == 2
    assert "--op is 'sorting'; expected one of walk, graph stage" in capsys.readouterr().err
    assert main(["bench", "--tokens", "3"]) == 2
    assert "--tokens is 3; expected 16 or more" in capsys.readouterr().err
    assert main(["bench", "--update"]) == 2
    assert "--update goes with --op or --tokens" in capsys.readouterr().err
    assert main(["bench", "--compare", "no.json", "no.json"]) == 2
    assert "no.json: not results that can be read" in capsys.readouterr().err
    assert main(["bench", "--quick", "-o", str(Path(__file__) / "x.json")]) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert main(["bench", "--quick", "-o", str(Path(__file__).parent)]) == 2
    assert "is a folder; expected the name of a file" in capsys.readouterr().err
    assert main(["bench", "--quick", "--op", "local walk"]) == 2
    assert "tier quick has no cases of local walk; leave out --quick" in capsys.readouterr().err
