"""stdout and stderr that never end a command: closed, full, or without the characters needed."""

import contextlib
import os
import sys
from collections.abc import Iterator

from nerve_fast.utils.text import plain


class Stream:
    """A text stream that keeps the first error in place of raising it.

    Characters that the encoding lacks are written as escapes, and control characters too. After an
    error nothing more is written, so that the work of a command goes on without its words.

    Args:
        stream: ``None`` where the file was closed before the program started.
        kept: control characters that are written; others are written as escapes. ``None`` keeps
            all, as progress bars need some.
    """

    def __init__(self, stream, kept: str | None = None):
        self.stream = stream
        self.kept = kept
        self.error: OSError | None = None

    def __getattr__(self, name):
        return getattr(self.stream, name)

    @property
    def encoding(self) -> str:
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(self._written(text)))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush if self.stream is not None else None)

    def _written(self, text: str) -> str:
        if self.kept is not None:
            text = plain(text, self.kept)
        try:
            return text.encode(self.encoding, "strict").decode(self.encoding)
        except UnicodeError:
            return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def _try(self, act) -> None:
        if self.stream is None or self.error is not None:
            return
        try:
            act()
        except ValueError:
            # It was closed since.
            self.stream = None
        except OSError as error:
            self.error = error
            self._let_go()

    def _let_go(self) -> None:
        """Let what is still in the buffer end nowhere, or Python complains about it at its end."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def steady() -> Iterator[Stream]:
    """Put a :class:`Stream` in place of stdout and stderr; gives that of stdout."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Stream(before[0], kept="\n\t"), Stream(before[1])
    stdout = sys.stdout
    try:
        yield stdout
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
