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

from nerve_fast.bench import gpu
from nerve_fast.kernels import configs

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the command itself")


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch):
    monkeypatch.setattr(configs, "tuned", {})


def test_all_of_it_runs_and_is_written_down(tmp_path, capsys):
    output = tmp_path / "results" / "here.json"
    assert gpu.main(["--tokens", "16", "--seconds", "900", "--output", str(output)]) == 0
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


def test_a_failed_check_is_named_and_nan_fails(capsys):
    shape = [1, 2, 3, 4]
    assert not gpu.checked("x", torch.float16, shape, float("nan"))["passed"]
    assert gpu.checked("y", torch.float16, shape, 1e-3)["passed"]
    out = capsys.readouterr().out
    assert "WRONG x, float16" in out
    assert "y" not in out


def test_what_there_was_no_time_for_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "check_kernels", lambda on_gpu: [])
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
