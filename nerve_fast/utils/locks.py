"""Locks between processes: on an output folder, and on a piece of work."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from nerve_fast.errors import InputError
from nerve_fast.utils.files import prepare_folder, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module's type has no None


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
    handle = None if fcntl is None else os.open(folder, os.O_RDONLY)
    try:
        if handle is not None:
            _lock(handle, folder)
        yield
    finally:
        if handle is not None:
            os.close(handle)
        # Nothing was written: a mistake was found after the folder had been made.
        if not existed:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def claimed(path: Path, *, patient: bool) -> Iterator[bool]:
    """Keep other processes of a machine from doing a piece of work at the same time.

    The file that is locked goes at the end. Who waited for it must look whether the work is done.
    Where there are no locks, or the file cannot be made, nothing is locked.

    Args:
        path: of a file that stands for the work, and holds nothing.
        patient: wait until it is free.

    Yields:
        Whether this process has it; never ``False`` for a patient one.
    """
    handle = None
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = None if fcntl is None else os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    mine = True
    try:
        if handle is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
            except BlockingIOError:
                mine = False
            except OSError:
                # The file system has no locks.
                pass
        yield mine
    finally:
        if handle is not None:
            if mine:
                with contextlib.suppress(OSError):
                    path.unlink()
            os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"another run works in {shown(folder)}; wait for its end, or write to another folder "
            "with -o"
        ) from None
    except OSError:
        # The file system has no locks.
        return
