"""The cases as tests of pytest-benchmark."""

import json
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs bench.gpu itself")


@pytest.mark.slow
def test_pytest_runs_the_cases(tmp_path):
    output = tmp_path / "here.json"
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "--tier", "quick"]
    done = subprocess.run(
        [*command, "-k", "head_entropy and (SDPA or blocked)", f"--benchmark-json={output}"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert "2 passed" in done.stdout, done.stdout
    benchmarks = json.loads(output.read_text())["benchmarks"]
    assert {one["extra_info"]["contender"] for one in benchmarks} == {"SDPA", "blocked"}
    assert all(one["extra_info"]["error"] < 1e-5 for one in benchmarks)
