import os
import signal
import subprocess
import sys

import pytest

from nerve_fast.errors import InputError
from nerve_fast.utils.files import written_whole
from nerve_fast.utils.locks import alone_in, among_others_in, clear_leftovers


def test_one_run_at_a_time(tmp_path):
    folder = tmp_path / "out"
    with alone_in(folder):
        with pytest.raises(InputError, match="another run works in .*out; wait"), alone_in(folder):
            pass
        (folder / "result").touch()
    with alone_in(folder):
        pass
    assert os.listdir(folder) == ["result"]


def test_a_folder_that_stays_empty_goes(tmp_path):
    with alone_in(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with alone_in(tmp_path / "old"):
        pass
    assert (tmp_path / "old").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from nerve_fast.utils.files import written_whole
from nerve_fast.utils.locks import alone_in

with alone_in(Path(sys.argv[1])), written_whole(Path(sys.argv[1], sys.argv[2])) as path:
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["scene.labels.png", "a b.npz", ".made.jsonl", "-.json"])
def test_a_lock_ends_and_leftovers_are_cleared_after_a_kill(tmp_path, name):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), name])
    assert killed.returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    with alone_in(tmp_path):
        clear_leftovers(tmp_path, {"other.png"}.__contains__)
        assert os.listdir(tmp_path) == [left]
        clear_leftovers(tmp_path, {name}.__contains__)
    assert os.listdir(tmp_path) == []


def test_what_somebody_is_writing_stays(tmp_path):
    mine = {"a.png"}.__contains__
    with among_others_in(tmp_path, mine), written_whole(tmp_path / "a.png") as path:
        with among_others_in(tmp_path, mine):
            assert path.exists()
        path.write_text("whole")
    assert os.listdir(tmp_path) == ["a.png"]


def test_files_that_only_look_alike_stay(tmp_path):
    names = {".a-12345678.png", ".a-abc.png", "a-abcdefgh.png", ".b-abcdefgh.png", ".a-abcdefgh"}
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "target").touch()
    (tmp_path / ".a-linklink.png").symlink_to(tmp_path / "target")
    clear_leftovers(tmp_path, {"a.png"}.__contains__)
    assert set(os.listdir(tmp_path)) == names - {".a-12345678.png"} | {"target", ".a-linklink.png"}
