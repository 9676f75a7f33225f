"""What the check of a first use found is remembered, and decides what is taken."""

import logging
import math

import pytest
import torch

import nerve_fast as nf
from nerve_fast.dispatch import choose, selfcheck
from nerve_fast.dispatch.selfcheck import Finding
from nerve_fast.kernels import launch

CUDA = torch.device("cuda")
RIGHT = Finding("head_entropy", "float16", 1e-4, 2e-3)
WRONG = Finding("random_walk, dense", "float16", 0.25, 2e-3)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A GPU whose kernels start; returns ``found``, what its checks find, and ``ran``."""

    class Machine:
        found, ran = [RIGHT], []

        def check(self, device, dtype):
            self.ran.append(dtype)
            return self.found

        def new_process(self):
            monkeypatch.setattr(selfcheck, "_found", {})

    machine = Machine()
    machine.ran = []
    machine.new_process()
    monkeypatch.setenv("NERVE_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    monkeypatch.setattr(launch, "obstacle", lambda device: None)
    monkeypatch.setattr("nerve_fast.dispatch.selfcheck.is_capturing", lambda device: False)
    monkeypatch.setattr("nerve_fast.kernels.configs.device_name", lambda device: "GPU 1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(selfcheck, "check", machine.check)
    return machine


def test_kernels_that_pass_are_taken_and_not_checked_again(machine, tmp_path, caplog):
    for _ in range(2):
        assert choose("auto", CUDA, torch.float16) == "triton"
        assert choose("triton", CUDA, torch.float16) == "triton"
        machine.new_process()
    assert machine.ran == [torch.float16]
    assert [path.read_text() for path in tmp_path.rglob("check-*.json")] == ["[]\n"]
    assert caplog.messages == []


def test_kernels_that_fail_are_left_out_and_refused(machine, caplog):
    machine.found = [RIGHT, WRONG]
    said = "fail their check on GPU 1: random_walk, dense in float16 is off by 0.25 where 0.002"
    for _ in range(2):
        with caplog.at_level(logging.WARNING, logger="nerve_fast"):
            assert choose("auto", CUDA, torch.float16) == "blocked"
            assert choose("auto", CUDA, torch.float16) == "blocked"
        assert len(caplog.messages) == 1
        assert said in caplog.messages[0]
        assert "'auto' takes the backend 'blocked'" in caplog.messages[0]
        with pytest.raises(nf.InputError) as raised:
            choose("triton", CUDA, torch.float16)
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
        caplog.clear()
        machine.new_process()
    assert machine.ran == [torch.float16]


def test_each_dtype_is_checked_by_itself(machine):
    machine.found = [WRONG]
    assert choose("auto", CUDA, torch.float16) == "blocked"
    machine.found = [RIGHT]
    assert choose("auto", CUDA, torch.bfloat16) == "triton"
    assert machine.ran == [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("change", ["driver", "triton", "GPU"])
def test_another_machine_is_checked_anew(machine, monkeypatch, tmp_path, change):
    assert choose("auto", CUDA, torch.float16) == "triton"
    machine.new_process()
    monkeypatch.setattr(selfcheck, "_machine", selfcheck._machine.__wrapped__)
    if change == "driver":
        driver = tmp_path / "version"
        driver.write_text("NVRM version: 600.1")
        monkeypatch.setattr(selfcheck, "DRIVERS", (driver,))
    elif change == "triton":
        monkeypatch.setattr("triton.__version__", "3.99.0")
    else:
        monkeypatch.setattr("nerve_fast.kernels.configs.device_name", lambda device: "GPU 2")
    assert choose("auto", CUDA, torch.float16) == "triton"
    assert len(machine.ran) == 2


def test_a_failure_without_a_number_is_remembered(machine):
    machine.found = [Finding("head_entropy", "float16", math.nan, 2e-3, "fails (RuntimeError: x)")]
    for _ in range(2):
        assert choose("auto", CUDA, torch.float16) == "blocked"
        machine.new_process()
    assert len(machine.ran) == 1


@pytest.mark.parametrize("content", ["", "[{]", "[3]", '[{"what": "x"}]', "{}", '{"a": 1}'])
def test_a_damaged_file_is_not_believed(machine, tmp_path, content):
    assert choose("auto", CUDA, torch.float16) == "triton"
    (path,) = tmp_path.rglob("check-*.json")
    path.write_text(content)
    machine.new_process()
    machine.found = [WRONG]
    assert choose("auto", CUDA, torch.float16) == "blocked"
    assert len(machine.ran) == 2


def test_a_cache_that_cannot_be_written_does_no_harm(machine, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NERVE_FAST_CACHE", str(tmp_path / "file"))
    machine.found = [WRONG]
    assert choose("auto", CUDA, torch.float16) == "blocked"
    assert choose("auto", CUDA, torch.float16) == "blocked"
    assert len(machine.ran) == 1


def test_nothing_is_checked_while_a_graph_is_recorded(machine, monkeypatch):
    machine.found = [WRONG]
    monkeypatch.setattr("nerve_fast.dispatch.selfcheck.is_capturing", lambda device: True)
    assert choose("auto", CUDA, torch.float16) == "triton"
    assert machine.ran == []


def test_what_is_forgotten_is_checked_again(machine):
    assert choose("auto", CUDA, torch.float16) == "triton"
    selfcheck.forget(CUDA)
    machine.found = [WRONG]
    assert choose("auto", CUDA, torch.float16) == "blocked"
