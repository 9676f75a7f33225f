"""``python -m bench.gpu`` on the CPU, through the interpreter and rehearsed: it must not fail for a
silly reason on the first GPU it meets, and its first minutes must not be lost."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)

from nerve_fast.bench import gpu
from nerve_fast.bench.harness import suite
from nerve_fast.bench.harness.driver import Driver
from nerve_fast.bench.harness.rehearsal import Rehearsal
from nerve_fast.bench.pages import bars
from nerve_fast.kernels import configs

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the command itself")


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch):
    monkeypatch.setattr(configs, "tuned", {})


@pytest.mark.slow
def test_all_of_it_runs_and_is_written_down(tmp_path, capsys):
    output = tmp_path / "results" / "here.json"
    assert gpu.main(["--tokens", "16", "--seconds", "1800", "--output", str(output)]) == 0
    # A NaN would not be JSON.
    result = json.loads(output.read_text(), parse_constant=pytest.fail)
    assert result["machine"]["interpreted"]
    assert result["machine"]["commit"]
    assert len(result["checks"]) > 40
    assert all(check["passed"] for check in result["checks"])
    done = {(row["operation"], row["contender"]) for row in result["rows"] if row["seconds"]}
    for operation in ("cosine affinity", "local affinity", "head entropy"):
        assert (operation, "triton") in done
        assert (operation, "blocked") in done
    routes = {who for operation, who in done if operation == "walk"}
    assert {"triton dense", "triton streaming", "triton factorized", "SDPA"} <= routes
    assert {("graph stage", "triton auto"), ("head entropy", "SDPA")} <= done
    assert not [row for row in result["rows"] if row["seconds"] is None]
    assert result["candidates"]
    assert result["skipped"] == []
    assert "0 wrong or failed; written to" in capsys.readouterr().out


def named(case):
    return case.operation.name, case.contender.name, case.setting


def test_every_bar_has_its_cases():
    known = {named(case) for case in suite.select("cuda")}
    missing = [asked for asked in bars.asked_for() if asked not in known]
    # A CPU's torch makes cases of all but those that ask for a GPU's generation.
    assert missing == []


def test_a_rehearsal_shows_the_bars_rows_first(capsys):
    driver = Rehearsal()
    _, skipped = gpu.session(driver, None, 420, None)
    cases = [case for _, case in driver.measured]
    asked = bars.asked_for()
    first = cases[: len(asked)]
    assert {named(case) for case in first} == set(asked)
    assert [case.setting.dtype for case in first[:2]] == ["bfloat16", "bfloat16"]
    ours = [case.setting for case in first if case.contender.ours]
    assert ours == sorted(ours, key=lambda s: (s.tokens, s.dtype != "bfloat16"))
    assert {setting.tokens for setting in ours} == {4096, 16_384, 65_536}
    # All of the bars' rows within the first third of the seven minutes, all of it within the seven.
    assert driver.measured[len(asked) - 1][0] < 140
    assert driver.now() <= 420
    assert len(cases) + len(skipped) == len(suite.select("cuda"))
    out = capsys.readouterr().out
    parts = [
        "compiling what",
        "measuring ceilings",
        "rows that bars are judged from\n",
        "checking kernels",
        "other cases start",
        "other rows",
        "configurations of every kernel",
        "done",
    ]
    places = [out.index(part) for part in parts]
    assert places == sorted(places)


def test_a_rehearsal_stops_in_time():
    driver = Rehearsal()
    _, skipped = gpu.session(driver, None, 60, None)
    assert len(driver.measured) < len(bars.asked_for())
    assert len(skipped) + len(driver.measured) == len(suite.select("cuda"))


def test_a_failure_of_others_is_none_of_ours(tmp_path, monkeypatch, capsys):
    from nerve_fast.bench.harness.row import Row

    def measure(self, case):
        note = "WRONG" if case.contender.ours is self.ours_fail else "absent: by this test"
        return Row(case.operation.name, case.contender.name, {}, case.contender.ours, note=note)

    for name in ("measure_ceilings", "check_kernels", "time_candidates"):
        monkeypatch.setattr(Driver, name, lambda self, *others: [])
    monkeypatch.setattr(Driver, "measure", measure)
    monkeypatch.setattr(gpu, "ceilings", lambda machine: "")
    monkeypatch.setattr("nerve_fast.bench.harness.run.line", lambda row, mine: "")
    monkeypatch.setattr(gpu.bars, "judge", lambda document: [])
    arguments = ["--tokens", "16", "--output", str(tmp_path / "here.json")]
    for ours_fail in (False, True):
        monkeypatch.setattr(Driver, "ours_fail", ours_fail, raising=False)
        assert gpu.main(arguments) == int(ours_fail)
    first, second = [line for line in capsys.readouterr().out.splitlines() if "written to" in line]
    assert "; 0 wrong or failed" in first
    assert " 0 of others failed" not in first
    assert " 0 of others failed" in second


def test_what_there_was_no_time_for_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Driver, "check_kernels", lambda self: [])
    output = tmp_path / "here.json"
    assert gpu.main(["--tokens", "16", "--seconds", "0", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert not result["rows"]
    assert "head_entropy-SDPA-16--float32-K21-L10-C320" in result["skipped"]


def test_without_gpu_and_interpreter_it_says_so():
    command = [sys.executable, "-m", "bench.gpu"]
    done = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no GPU that torch can use; TRITON_INTERPRET=1 tries" in done.stderr


@pytest.mark.parametrize("name", ["compute-sanitizer", "gsan"])
def test_a_sanitizer_needs_a_gpu(name, capsys):
    assert gpu.main(["--sanitizer", name]) == 2
    assert f"--sanitizer {name} watches a GPU, and torch finds none" in capsys.readouterr().err


def test_a_checkout_that_is_not_installed():
    code = (
        "import sys; sys.path = [p for p in sys.path if 'nerve' not in p];"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()];"
        "import os; sys.path.insert(0, os.getcwd()); import bench;"
        "from nerve_fast.bench import gpu; from nerve_fast.kernels import configs;"
        "print(configs.__file__, gpu.__file__)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kernels, bench = done.stdout.split()
    assert kernels.endswith("kernels/configs.py")
    assert bench.endswith("bench/gpu.py")
