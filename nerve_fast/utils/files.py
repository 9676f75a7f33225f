"""Atomic writes, output folders, and the cache folder."""

import contextlib
import functools
import logging
import os
import platform
import re
import secrets
import stat
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import psutil

from nerve_fast.errors import InputError
from nerve_fast.utils.text import plain

logger = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".nerve-fast-"
"""Temporary files are named ``{prefix}{host}-{pid}-{random}{suffix}``."""

LONGEST_SUFFIX = 32
"""In bytes: a longer one could make the temporary name longer than file systems allow."""


LOOKED_AT = 1 << 12
"""Bytes at the start of a file in which :func:`refuse_foreign` looks for a mark."""


def shown(path: str | os.PathLike) -> str:
    """A path as messages show it: on one line, without control characters, as valid Unicode."""
    return plain(os.fsdecode(path))


def cache_folder() -> Path:
    """The folder for what can be computed again.

    ``$NERVE_FAST_CACHE``, else ``$XDG_CACHE_HOME/nerve-fast``, else ``~/.cache/nerve-fast``, else,
    for a user without a home folder, a private folder among the temporary ones.

    Raises:
        InputError: there is neither a home folder nor a folder for temporary files.
    """
    if os.environ.get("NERVE_FAST_CACHE"):
        return Path(os.environ["NERVE_FAST_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "nerve-fast"
    try:
        return Path.home() / ".cache" / "nerve-fast"
    except RuntimeError:
        return _temporary_cache()


@functools.cache
def _temporary_cache() -> Path:
    advice = "set NERVE_FAST_CACHE to a folder that is kept"
    try:
        folder = Path(tempfile.gettempdir()) / f"nerve-fast-{os.getuid()}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        state = folder.lstat()
        # Anybody can make a folder of this name; what others can write to is not to be trusted.
        if state.st_uid != os.getuid() or state.st_mode & 0o170077 != 0o040000:
            folder = Path(tempfile.mkdtemp(prefix="nerve-fast-"))
    except OSError as error:
        raise InputError(
            f"there is no home folder for the cache, and no temporary one ({error}); {advice}"
        ) from None
    logger.warning("there is no home folder: the cache is %s; %s", folder, advice)
    return folder


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """An atomic write: a temporary path that takes the name ``path`` when the block ends well.

    The temporary file lies in the same folder and has the same suffix. Its content is flushed to
    the disk before it is renamed. After an error, or an interruption that Python sees, it is
    removed; what a killed process leaves is removed by :func:`clear_stale`. A symbolic link of the
    name ``path`` is replaced, not followed.

    Raises:
        InputError: ``path`` is a folder or cannot be written.
    """
    path = Path(path)
    try:
        with _renamed_at_end(path) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be written: {_reason(error)}") from error


@contextlib.contextmanager
def _renamed_at_end(path: Path) -> Iterator[Path]:
    try:
        if b"\0" in os.fsencode(path):
            raise ValueError("embedded null byte")
        is_folder = path.is_dir()
        temporary = _create_temporary(path)
    except ValueError as error:  # Also characters that the file system cannot encode.
        raise InputError(f"{shown(path)}: cannot be written: {error}") from None
    try:
        if is_folder:
            raise InputError(f"{shown(path)}: is a folder; expected the name of a file to write")
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _flush_folder(path.parent)


def _create_temporary(path: Path) -> Path:
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= LONGEST_SUFFIX else ""
    while True:
        name = f"{TEMPORARY_PREFIX}{_host()}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"
        with contextlib.suppress(FileExistsError):
            # The permissions are those that the umask leaves, as for any new file.
            os.close(os.open(path.parent / name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
            return path.parent / name


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Make a rename durable, on platforms and file systems where folders can be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@functools.cache
def _host() -> str:
    """A process number means nothing on another machine that shares the folder."""
    return f"{zlib.crc32(platform.node().encode('utf-8', 'replace')):08x}"


def refuse_foreign(path: Path, mark: bytes) -> None:
    """Raise where a command would overwrite a file that it did not make.

    Args:
        path: of what is going to be written.
        mark: what each file that the command makes holds within its first :data:`LOOKED_AT` bytes.

    Raises:
        InputError: a file without the mark is there, or a symbolic link, or it cannot be read. A
            file that is empty or holds zeros alone, as after a crash, may be overwritten.
    """
    advice = "and is left alone; move it away, or write to another place"
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):  # Nothing is there; or writing says what is wrong.
        return
    if stat.S_ISLNK(mode):
        raise InputError(f"{shown(path)}: is a symbolic link, {advice}")
    try:
        if not stat.S_ISREG(mode):  # Of a folder, writing says that it is one.
            return
        with path.open("rb") as file:
            start = file.read(LOOKED_AT)
            if mark in start:
                return
            while start:
                if start.strip(b"\0"):
                    raise InputError(f"{shown(path)}: was not made by this command, {advice}")
                start = file.read(LOOKED_AT)
    except OSError as error:
        raise InputError(
            f"{shown(path)}: is there and cannot be read ({_reason(error)}), {advice}"
        ) from error


def clear_stale(folder: Path) -> None:
    """Remove temporary files of :func:`written_whole` whose process on this machine has ended.

    Files that cannot be removed stay, and so do those of other machines.
    """
    start = f"{TEMPORARY_PREFIX}{_host()}-"
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            named = re.fullmatch(rf"{re.escape(start)}(\d{{1,9}})-[0-9a-f]{{8}}.*", entry.name)
            if (
                named
                and entry.is_file(follow_symlinks=False)
                and not psutil.pid_exists(int(named[1]))
            ):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def prepare_folder(folder: Path) -> None:
    """Make the folder, find out now whether it can be written, and clear stale temporary files.

    Raises:
        InputError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise InputError(
            f"the output folder {shown(folder)} cannot be written: {_reason(error)}"
        ) from error
    clear_stale(folder)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
