"""``python -m bench.gpu`` on the CPU, through the interpreter: it must not fail for a silly reason
on the first GPU it meets."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)

from bench import gpu
from bench.session import Machine, Session
from nerve_fast.kernels import affinity, configs

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the command itself")


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch):
    monkeypatch.setattr(configs, "tuned", {})


def test_all_of_it_runs_and_is_written_down(tmp_path, capsys):
    output = tmp_path / "results" / "here.json"
    assert gpu.main(["--tokens", "16", "--output", str(output)]) == 0
    # A NaN would not be JSON.
    result = json.loads(output.read_text(), parse_constant=pytest.fail)
    assert result["machine"]["interpreted"]
    assert result["machine"]["commit"]
    assert len(result["checks"]) > 40
    assert all(check["passed"] for check in result["checks"])
    done = {(row["op"], row["backend"]) for row in result["rows"] if row["seconds"]}
    for op in ("cosine affinity", "local affinity", "head entropy", "stage softmax"):
        for backend in ("triton", "blocked", "compiled"):
            assert (op, backend) in done
    assert {("step softmax dense fp8", "triton"), ("head entropy", "SDPA")} <= done
    assert not [row for row in result["rows"] if row["note"].startswith(("WRONG", "Runtime"))]
    assert result["candidates"]
    assert all(bar["met"] is None for bar in result["bars"])
    assert "0 wrong; written to" in capsys.readouterr().out


def test_a_wrong_kernel_is_not_timed(tmp_path, monkeypatch, capsys):
    right = affinity.cosine_affinity
    monkeypatch.setattr(affinity, "cosine_affinity", lambda *given: right(*given) * 1.1)
    session = Session(Machine(), tmp_path / "here.json", 100, {})
    gpu.time_cosine_affinity(session, 16, torch.float16)
    mine, *others = session.rows
    assert mine.backend == "triton"
    assert mine.seconds is None
    assert mine.note.startswith("WRONG: error 1.0e-01 above 0.002")
    assert all(row.seconds for row in others)


def test_a_failed_check_is_named_and_nan_fails(tmp_path, capsys):
    session = Session(Machine(), tmp_path / "here.json", 100, {})
    session.check("x", torch.float16, [1, 2, 3, 4], float("nan"))
    session.check("y", torch.float16, [1, 2, 3, 4], 1e-3)
    assert [check["passed"] for check in session.checks] == [False, True]
    assert "WRONG x, float16" in capsys.readouterr().out


def test_what_there_was_no_time_for_is_named(tmp_path):
    session = Session(Machine(), tmp_path / "here.json", 0, {})
    gpu.time_head_entropy(session, 16, torch.float16)
    session.write()
    assert not session.rows
    result = json.loads((tmp_path / "here.json").read_text())
    assert "head entropy, SDPA, N = 16, float16" in result["skipped"]


def test_bars_are_judged(tmp_path, capsys):
    session = Session(Machine(), tmp_path / "here.json", 100, {})
    row = gpu.Row("stage softmax", "triton", 4096, "bfloat16", 100e-6)
    session.add(row)
    session.add(gpu.Row("stage softmax", "reference", 4096, "bfloat16", 1e-3))
    gpu.judge(session)
    met = {bar["what"]: bar["met"] for bar in session.bars}
    assert met["whole stage, N = 4096: µs"] is True
    assert met["whole stage, N = 4096: times the reference"] is False
    assert met["streaming step, N = 16384: TFLOP/s"] is None


def test_without_gpu_and_interpreter_it_says_so():
    command = [sys.executable, "-m", "bench.gpu"]
    done = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no GPU that torch can use; TRITON_INTERPRET=1 tries" in done.stderr


def test_a_checkout_that_is_not_installed(tmp_path):
    code = (
        "import sys; sys.path = [p for p in sys.path if 'nerve' not in p];"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()];"
        "import os; sys.path.insert(0, os.getcwd()); import bench;"
        "from nerve_fast.kernels import configs; print(configs.__file__)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("kernels/configs.py")
