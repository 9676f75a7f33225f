"""Locks on output folders, and what killed runs left there."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from nerve_fast.errors import InputError
from nerve_fast.utils.files import prepare_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_TEMPORARY = re.compile(r"\.(?P<stem>.+)-[a-z0-9_]{8}(?P<suffix>\.[a-z0-9]+)")
"""Names that :func:`nerve_fast.utils.files.written_whole` writes to."""


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made where it is not there.

    The lock is one of the operating system on the folder itself: it ends with the process, however
    that ends, and leaves no file. Where the system or the file system has none, nothing is locked.

    Raises:
        InputError: another run works in the folder, or it cannot be written.
    """
    existed = folder.is_dir()
    prepare_folder(folder)
    with _opened(folder) as handle:
        if not _locked(handle, shared=False):
            raise InputError(
                f"another run works in {folder}; wait for its end, or write to another folder "
                "with -o"
            )
        try:
            yield
        finally:
            # Nothing was written: a mistake was found after the folder had been made.
            if not existed:
                with contextlib.suppress(OSError):
                    folder.rmdir()


@contextlib.contextmanager
def among_others_in(folder: Path, is_mine: Callable[[str], bool]) -> Iterator[None]:
    """Work in a folder as others may, too; the first of them clears what killed runs left.

    Args:
        folder: it is there.
        is_mine: as for :func:`clear_leftovers`.
    """
    with _opened(folder) as handle:
        if handle is not None and _locked(handle, shared=False):
            clear_leftovers(folder, is_mine)
        _locked(handle, shared=True)
        yield


def clear_leftovers(folder: Path, is_mine: Callable[[str], bool]) -> None:
    """Remove temporary files of runs that were killed while they wrote.

    Args:
        folder: it is looked at, folders in it are not.
        is_mine: whether the caller writes files of a name; temporary files of others stay.
    """
    for path in folder.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match and is_mine(match["stem"] + match["suffix"]) and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A handle of the folder; ``None`` where the system has no locks."""
    if fcntl is None:
        yield None
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _locked(handle: int | None, *, shared: bool) -> bool:
    """Whether no other process holds a lock that excludes this one, which is held from now on."""
    if handle is None:
        return True
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # The file system has no locks.
        return True
    return True
