"""The memory that this process holds without using it."""

import ctypes
import functools
from collections.abc import Callable


def give_back() -> None:
    """Return what the heap keeps of freed memory to the system, where the C library is glibc.

    It takes milliseconds, and pages that are used again are made again.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


class Heap:
    """Gives freed memory back before work of another size than the last."""

    def __init__(self):
        self._size: object = None

    def begin(self, size: object) -> None:
        """Say of what size the work is that follows."""
        if size != self._size:
            self._size = size
            give_back()


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # Another C library, or Windows.
        return None
