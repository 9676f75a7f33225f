import os
import signal
import subprocess
import sys
import threading

import pytest

from nerve_fast.errors import InputError
from nerve_fast.utils.locks import alone_in, claimed


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


@pytest.mark.parametrize("name", ["scene.labels.png", "a b.npz", ".made.jsonl"])
def test_a_lock_ends_and_leftovers_are_cleared_after_a_kill(tmp_path, name):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), name])
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    (tmp_path / name).write_text("whole")
    with alone_in(tmp_path):
        assert os.listdir(tmp_path) == [name]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such locks")
def test_work_is_claimed_by_one_at_a_time(tmp_path):
    path = tmp_path / "new" / "work.lock"
    order = []

    def wait():
        with claimed(path, patient=True) as mine:
            order.append(("waited", mine))

    other = threading.Thread(target=wait)
    with claimed(path, patient=False) as mine:
        assert mine
        with claimed(path, patient=False) as again:
            assert not again
        assert path.exists()
        other.start()
        other.join(0.05)
        order.append(("done", True))
    other.join()
    assert order == [("done", True), ("waited", True)]
    assert not any(path.parent.iterdir())


def test_where_nothing_can_be_locked_work_is_done(tmp_path):
    (tmp_path / "file").touch()
    with claimed(tmp_path / "file" / "work.lock", patient=True) as mine:
        assert mine
