"""Which files of a folder runs made there.

``.made.jsonl`` lists the files by name; what is not in it is somebody else's, and is neither
deleted nor overwritten.
"""

from collections.abc import Iterable
from pathlib import Path

from nerve_fast.errors import InputError
from nerve_fast.utils.files import written_whole
from nerve_fast.utils.lines import add_line, drop_cut_off, read_lines
from nerve_fast.utils.provenance import file_digest

LIST = ".made.jsonl"
"""Of the files that runs made."""


def made(folder: Path) -> dict[str, str | None]:
    """The files that runs made, in that order, with digests of those that do not grow.

    Raises:
        InputError: the list cannot be read.
    """
    found = {}
    path = folder / LIST
    if path.exists():
        read_lines(path, lambda line: found.update({str(line["name"]): line["digest"]}))
    return {name: digest for name, digest in found.items() if name == Path(name).name}


def claim(folder: Path, names: Iterable[str]) -> None:
    """Add files to the list before they are written.

    Raises:
        InputError: one is there that no run made, or is a symbolic link; or the list cannot be
            written.
    """
    names = list(names)
    known = made(folder)
    for name in names:
        refuse_foreign(folder, name, known)
    if (folder / LIST).exists():
        drop_cut_off(folder / LIST)
    for name in names:
        if name not in known or known[name] is not None:
            add_line(folder / LIST, {"name": name, "digest": None})


def refuse_foreign(folder: Path, name: str, known: dict[str, str | None]) -> None:
    """Raise an :class:`InputError` where a file is there that is not one of those ``known``."""
    path = folder / name
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link, and results are not written through links")
    if path.exists() and not _is_made(path, known):
        raise InputError(
            f"{path}: was not made by a run in this folder, and is left alone; write to another "
            "folder with -o, or move it away"
        )


def seal(folder: Path, name: str) -> None:
    """Note what a claimed file holds, which is not going to change."""
    add_line(folder / LIST, {"name": name, "digest": file_digest(folder / name)})


def remove_made(folder: Path, *, starting: tuple[str, ...] = ("",)) -> None:
    """Remove files that runs made, the last ones first; what others put in their place is kept.

    Args:
        folder: of the runs.
        starting: only files whose names start with one of these.

    Raises:
        InputError: a file cannot be removed, or the list cannot be read or written.
    """
    known = made(folder)
    for name in reversed(known):
        path = folder / name
        if not name.startswith(starting) or not _is_made(path, known):
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be removed: {error.strerror}") from error
    if known:
        with written_whole(folder / LIST) as path:
            for name, digest in known.items():
                if not name.startswith(starting):
                    add_line(path, {"name": name, "digest": digest})


def _is_made(path: Path, known: dict[str, str | None]) -> bool:
    if path.name not in known or path.is_symlink() or not path.is_file():
        return False
    digest = known[path.name]
    return digest is None or file_digest(path) == digest
