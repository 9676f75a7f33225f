"""``nerve-fast doctor --check``."""

import pytest

from nerve_fast.bench.harness import checks
from nerve_fast.cli import doctor
from nerve_fast.cli.main import main


@pytest.fixture
def checked(monkeypatch, tmp_path):
    """``checked(passed)``: what ``doctor --check`` returns where one check came out so."""
    monkeypatch.setenv("NERVE_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "triton_obstacle", lambda *kind, checked: None)

    def run(passed):
        monkeypatch.setattr(checks, "check_kernels", lambda on_gpu: [{"passed": passed}])
        return main(["doctor", "--check"])

    return run


def test_the_exit_code_says_whether_all_kernels_are_right(checked):
    assert checked(True) == 0
    assert checked(False) == 1


def test_without_kernels_there_is_nothing_to_check(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "triton_obstacle", lambda *kind, checked: "needs a GPU")
    assert main(["doctor", "--check"]) == 2
    assert capsys.readouterr().err == (
        "nerve-fast: --check needs kernels that start, and backend 'triton' needs a GPU\n"
    )


def test_what_a_first_use_found_is_said(monkeypatch, capsys):
    def obstacle(device, dtype):
        if str(dtype) == "torch.float16":
            return "fail their check on GPU 1: dense in float16 is off by 0.25"
        return None

    monkeypatch.setattr(doctor, "triton_obstacle", obstacle)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "  triton: fail their check on GPU 1: dense in float16 is off by 0.25\n" in said
    assert "  triton: ready\n" in said
