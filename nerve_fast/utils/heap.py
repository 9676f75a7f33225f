"""The memory that this process holds without using it."""

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator


def give_back() -> None:
    """Return what the heap keeps of freed memory to the system, where the C library is glibc.

    It takes milliseconds, and pages that are used again are made again.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


class Heap:
    """Gives freed memory back around work of another size than the last."""

    def __init__(self):
        self._size: object = None

    @contextlib.contextmanager
    def work(self, size: object) -> Iterator[None]:
        """Around work of a size; work of one size again and again keeps its memory between."""
        another, self._size = size != self._size, size
        if another:
            give_back()
        try:
            yield
        finally:
            if another:
                give_back()


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # Another C library, or Windows.
        return None
