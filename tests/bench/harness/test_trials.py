"""What was tried and left out can still be compiled, and so compared again."""

import os
import subprocess
import sys

import pytest

from nerve_fast.bench.harness import trials

NAMES = ("streaming step", "dense step", "local affinity")


@pytest.mark.slow
def test_each_idea_stands_beside_what_is_shipped():
    done = subprocess.run(
        [sys.executable, "-m", trials.__name__],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [sum(line.startswith(name) for line in lines) for name in NAMES] == [3, 2, 1]
    assert all(" 0 B spilled" in line for line in lines)


def test_interpreted_kernels_cannot_be_compiled(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trials"])
    monkeypatch.setattr(trials, "interpreted", lambda: True)
    assert trials.main() == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
