"""Which interpreters `make test-full` finds."""

import subprocess
import sys

from tools.other_pythons import found


def test_an_interpreter_is_of_the_version_asked_for():
    version = "{}.{}".format(*sys.version_info)
    python = found(version)
    if python is not None:
        code = "import sys; print('{}.{}'.format(*sys.version_info))"
        assert subprocess.check_output([python, "-c", code], text=True).strip() == version


def test_a_version_that_is_not_there_is_none():
    assert found("3.0") is None


def test_a_command_that_does_not_run_is_none(tmp_path, monkeypatch):
    command = tmp_path / "python3.10"
    command.write_text("#!/bin/sh\necho not found\nexit 127\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found("3.10") is None
