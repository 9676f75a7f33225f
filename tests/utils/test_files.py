import errno
import os
import re
import signal
import stat
import tempfile
from pathlib import Path

import pytest

from nerve_fast import InputError
from nerve_fast.utils import files
from nerve_fast.utils.files import (
    cache_folder,
    clear_stale,
    prepare_folder,
    refuse_foreign,
    shown,
    written_whole,
)


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


def test_what_is_renamed_is_on_the_disk_first(tmp_path, monkeypatch):
    done = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(kind(handle)), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    with written_whole(tmp_path / "a.txt") as path:
        path.write_text("whole")
    assert done == ["file", "rename", "folder"]


def kind(handle: int) -> str:
    return "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"


def test_a_folder_that_cannot_be_flushed_is_no_failure(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(handle):
        if kind(handle) == "folder":
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with written_whole(tmp_path / "a.txt") as path:
        path.write_text("whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


@pytest.mark.parametrize("link", [False, True])
def test_a_target_that_is_a_folder_is_refused_and_stays(tmp_path, link):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    target = tmp_path / "folder"
    if link:
        target = tmp_path / "link"
        target.symlink_to("folder")
    message = f"{target}: is a folder; expected the name of a file"
    with pytest.raises(InputError, match=re.escape(message)), written_whole(target):
        pytest.fail("the block must not start")
    assert (target / "kept").exists()
    assert sorted(os.listdir(tmp_path)) == (["folder", "link"] if link else ["folder"])


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_is_replaced_and_not_written_through(tmp_path, there):
    foreign = tmp_path / "foreign.txt"
    if there:
        foreign.write_text("foreign")
    (tmp_path / "a.txt").symlink_to(foreign)
    with written_whole(tmp_path / "a.txt") as path:
        path.write_text("ours")
    assert not (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "a.txt").read_text() == "ours"
    assert foreign.exists() == there
    assert not there or foreign.read_text() == "foreign"


@pytest.mark.parametrize(
    "error", [errno.EPERM, errno.EACCES, errno.EISDIR, errno.ENOSPC, errno.EIO]
)
def test_a_target_that_cannot_be_replaced_is_one_line(tmp_path, monkeypatch, error):
    """As another's file in a sticky folder."""

    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "replace", refuse)
    (tmp_path / "a.txt").write_text("earlier")

    with (
        pytest.raises(InputError) as caught,
        written_whole(tmp_path / "a.txt") as path,
    ):
        path.write_text("new")
    assert str(caught.value) == f"{tmp_path}/a.txt: cannot be written: {os.strerror(error)}"
    assert (tmp_path / "a.txt").read_text() == "earlier"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_anothers_file_in_a_sticky_folder_is_one_line():
    # The test's own folder is closed to other users.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        (Path(folder) / "a.txt").write_text("another's")
        process = os.fork()
        if process == 0:
            os.setuid(65534)
            said = ""
            try:
                with written_whole(Path(folder) / "a.txt") as path:
                    path.write_text("ours")
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            expected = f"InputError: {folder}/a.txt: cannot be written: Operation not permitted"
            os._exit(said != expected)
        assert os.waitpid(process, 0)[1] == 0
        assert (Path(folder) / "a.txt").read_text() == "another's"
        assert os.listdir(folder) == ["a.txt"]


@pytest.mark.parametrize(
    "name", ["x" * 251 + ".png", "x" * 255, "x." + "y" * 253, "ü" * 125 + ".png"]
)
def test_names_as_long_as_the_file_system_allows_are_written(tmp_path, name):
    with written_whole(tmp_path / name) as path:
        assert len(os.fsencode(path.name)) <= max(len(os.fsencode(name)), 80)
        path.write_text("whole")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["nul\0.txt", "\ud800.txt", "x" * 256 + ".txt", "a\0b/c.txt"])
def test_names_that_cannot_be_are_refused_in_one_line(tmp_path, name):
    with (
        pytest.raises(InputError, match="cannot be written: ") as caught,
        written_whole(tmp_path / name) as path,
    ):
        path.write_text("never")
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
    assert os.listdir(tmp_path) == []


def test_temporary_files_of_dead_processes_are_cleared_and_no_others(tmp_path):
    with written_whole(tmp_path / "ours.txt") as path:
        ours = path.name
        dead = dead_process()
        stale = ours.replace(f"-{os.getpid()}-", f"-{dead}-")
        assert stale != ours
        host = ours.removeprefix(".nerve-fast-").partition("-")[0]
        others = [
            ours.replace(host, "0" * 8).replace(f"-{os.getpid()}-", f"-{dead}-"),
            f".nerve-fast-{host}-{dead}-notes.txt",
            f"nerve-fast-{host}-{dead}-01234567.txt",
            "results.json",
        ]
        for name in (stale, *others):
            (tmp_path / name).touch()
        (tmp_path / stale.replace(".txt", ".folder")).mkdir()
        clear_stale(tmp_path)
        left = {ours, *others, stale.replace(".txt", ".folder")}
        assert set(os.listdir(tmp_path)) == left
    assert (tmp_path / "ours.txt").exists()


def dead_process() -> int:
    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)
    return process


def test_what_a_killed_process_leaves_is_cleared_by_the_next(tmp_path):
    process = os.fork()
    if process == 0:
        with written_whole(tmp_path / "a.txt") as path:
            path.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    assert len(os.listdir(tmp_path)) == 1
    prepare_folder(tmp_path)
    assert os.listdir(tmp_path) == []


def test_nothing_to_clear_is_no_failure(tmp_path):
    clear_stale(tmp_path / "missing")
    clear_stale(tmp_path)


def test_an_output_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "in", tmp_path / "nul\0"):
        with pytest.raises(InputError, match="output folder .* cannot be written: ") as caught:
            prepare_folder(folder)
        assert "\n" not in str(caught.value)


def test_an_unknown_user_without_a_home_has_a_private_cache(monkeypatch, tmp_path, caplog):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("NERVE_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files._temporary_cache.cache_clear()
    try:
        folder = cache_folder()
        assert folder == tmp_path / f"nerve-fast-{os.getuid()}"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert cache_folder() == folder
        assert len(caplog.messages) == 1
        assert f"the cache is {folder}; set NERVE_FAST_CACHE" in caplog.text
        # A folder that others can write to is not used.
        for make in (lambda: folder.chmod(0o777), lambda: replace_by_link(folder, tmp_path)):
            files._temporary_cache.cache_clear()
            make()
            other = cache_folder()
            assert other != folder
            assert other.parent == tmp_path
            assert stat.S_IMODE(other.stat().st_mode) == 0o700
        files._temporary_cache.cache_clear()
        monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "missing"))
        with pytest.raises(InputError, match="no home folder for the cache.* set NERVE_FAST_CACHE"):
            cache_folder()
    finally:
        files._temporary_cache.cache_clear()


def replace_by_link(folder: Path, target: Path) -> None:
    folder.rmdir()
    folder.symlink_to(target)


@pytest.mark.parametrize(
    ("path", "said"),
    [("a b.png", "a b.png"), ("a\nb", "a\\nb"), ("\x1b[31m", "\\x1b[31m"), ("küche", "küche")],
)
def test_paths_are_shown_on_one_line(path, said):
    assert shown(path) == shown(Path(path)) == said


@pytest.mark.parametrize("content", [b"mine", b"\0" * 5000 + b"x", b"x" * 5000 + b"MARK", b"\n"])
def test_a_file_of_others_is_refused_and_stays(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png: was not made by this command, and is left"):
        refuse_foreign(path, b"MARK")
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"MARK", b"12MARK3456"])
def test_a_file_that_was_made_here_or_holds_nothing_is_no_others(tmp_path, content):
    path = tmp_path / "a.png"
    refuse_foreign(path, b"MARK")
    path.write_bytes(content)
    refuse_foreign(path, b"MARK")


def test_links_are_others(tmp_path):
    (tmp_path / "ours").write_bytes(b"MARK")
    for number, target in enumerate(("ours", "nothing", "2")):
        path = tmp_path / str(number)
        path.symlink_to(target)
        with pytest.raises(InputError, match="is a symbolic link, and is left alone"):
            refuse_foreign(path, b"MARK")
        assert path.is_symlink()
