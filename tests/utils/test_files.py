import os
import stat

import pytest

from nerve_fast import InputError
from nerve_fast.utils.files import cache_folder, written_whole


def test_a_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "a.txt"
    with written_whole(target) as path:
        path.write_text("whole")
        assert not target.exists()
        assert path.suffix == ".txt"
    assert target.read_text() == "whole"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_others_may_read_it_as_the_umask_says(tmp_path):
    umask = os.umask(0o022)
    try:
        with written_whole(tmp_path / "a.txt") as path:
            path.write_text("whole")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("earlier")

    def fail():
        with written_whole(target) as path:
            path.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    message = "missing/a.txt: cannot be written: No such file"
    with pytest.raises(InputError, match=message), written_whole(tmp_path / "missing" / "a.txt"):
        pass


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NERVE_FAST_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("NERVE_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "nerve-fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "nerve-fast"
