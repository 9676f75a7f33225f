"""Files that appear whole or not at all, and where those lie that can be made again."""

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nerve_fast.errors import InputError


def cache_folder() -> Path:
    """``$NERVE_FAST_CACHE``, else ``$XDG_CACHE_HOME/nerve-fast``, else ``~/.cache/nerve-fast``.

    A user without a home gets a folder that lasts as long as the process.
    """
    if os.environ.get("NERVE_FAST_CACHE"):
        return Path(os.environ["NERVE_FAST_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "nerve-fast"
    try:
        return Path.home() / ".cache" / "nerve-fast"
    except RuntimeError:
        return Path(_folder_of_this_process().name)


@functools.cache
def _folder_of_this_process() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="nerve-fast-")


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the name ``path`` when the block ends well.

    After an error, or an interruption that Python sees, nothing of it is left.

    Raises:
        InputError: the place cannot be written.
    """
    path = Path(path)
    try:
        with _renamed_at_end(path) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _renamed_at_end(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        # mkstemp makes files that only their owner can read.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        yield Path(name)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def prepare_folder(folder: Path) -> None:
    """Make the folder, and find out now whether it can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"the output folder {folder} cannot be written: {error.strerror or error}"
        ) from error
