"""JSON on disk: documents, and files that grow by lines.

Each line has a checksum, and its writer may be killed at any moment.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nerve_fast.errors import InputError
from nerve_fast.utils.files import written_whole

_CHECKSUM = b',"sha256":"%s"}\n'
_LENGTH = len(_CHECKSUM % (b"0" * 64))


def add_line(path: Path, line: Mapping) -> None:
    """Append a line of JSON with its checksum to a file, in one write.

    Args:
        path: the file; it is made where it is not there.
        line: one or more values that JSON knows, none of them named ``sha256``.

    Raises:
        InputError: the file cannot be written, or is a symbolic link.
    """
    text = json.dumps(line, separators=(",", ":")).encode()
    checksum = hashlib.sha256(text).hexdigest().encode()
    try:
        with _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, "ab") as file:
            file.write(text[:-1] + _CHECKSUM % checksum)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {_reason(error)}") from error


def read_lines(path: Path, take: Callable[[dict], None]) -> None:
    """Give each line of a file to ``take``, except for a last one that was cut off.

    Raises:
        InputError: the file cannot be read, a line does not match its checksum, or ``take`` raises
            an error that says that it cannot make sense of a line.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    take(json.loads(_checked(line)))
                except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
                    raise InputError(
                        f"{path}: line {number} is damaged ({error}); remove it, and what it "
                        "stood for is done again"
                    ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {_reason(error)}") from error


def read_json(path: Path, *, advice: str = "") -> Any:
    """Return the content of a JSON file.

    Args:
        path: the file, in UTF-8.
        advice: what to do where it cannot be read.

    Raises:
        InputError: it cannot be read, is not JSON, or is nested too deeply.
    """
    advice = advice and f"; {advice}"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {_reason(error)}{advice}") from error
    except RecursionError:
        raise InputError(f"{path}: cannot be read: it is nested too deeply{advice}") from None
    except ValueError as error:
        raise InputError(f"{path}: cannot be read: {error}{advice}") from error


def write_json(path: Path, values: object) -> None:
    """Write a document, whole or not at all.

    Raises:
        InputError: the place cannot be written.
    """
    try:
        text = json.dumps(values, indent=2, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        # A name of a file that is not UTF-8; JSON has escapes for what stands for its bytes.
        text = json.dumps(values, indent=2).encode("ascii")
    with written_whole(path) as temporary:
        temporary.write_bytes(text)


def _checked(line: bytes) -> bytes:
    """The JSON of a line as it was before the checksum was added.

    Raises:
        ValueError: the checksum is missing, or of another text.
    """
    text = line[:-_LENGTH] + b"}"
    if line[-_LENGTH:] != _CHECKSUM % hashlib.sha256(text).hexdigest().encode():
        raise ValueError("it does not match its checksum")
    return text


def drop_cut_off(path: Path) -> None:
    """Drop a last line that is not whole because its writer was killed.

    Raises:
        InputError: the file cannot be read or written, or is a symbolic link.
    """
    try:
        with _opened(path, os.O_RDWR, "r+b") as file:
            lines = file.read()
            if not lines.endswith(b"\n"):
                file.truncate(lines.rfind(b"\n") + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be continued: {_reason(error)}") from error


def _opened(path: Path, flags: int, mode: str):
    """Open a file, but not through a symbolic link into another file."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), mode)


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a symbolic link, and records are not written through links"
    return error.strerror or str(error)
