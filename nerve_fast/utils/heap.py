"""The memory that this process has freed: kept for what comes next, or given back to the system."""

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Parameters of glibc's ``mallopt``."""

MMAPS = 65_536
"""glibc's own limit on allocations outside its heap."""

LARGEST_MMAP_THRESHOLD = 32 << 20
"""The size up to which glibc takes tensors from its heap, once a process has freed such ones."""

TUNED_BY = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")

_lock = threading.Lock()
_keeping = 0
"""Threads that want freed memory to be kept."""


def give_back() -> None:
    """Return what the heap keeps of freed memory to the system, where the C library is glibc.

    It takes milliseconds, and pages that are used again are made again.
    """
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep what is freed in here for the next tensor, and give all of it back at the end.

    glibc returns each tensor above 32 MB when it is freed, and a new one is given page by page,
    which takes longer than what is done with it.
    """
    global _keeping
    with _lock:
        _keeping += 1
        if _keeping == 1:
            _tune(MMAP_MAX, 0)
            _tune(TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        with _lock:
            _keeping -= 1
            if _keeping == 0:
                # Once one is set glibc adapts none of them; these are what it would come to.
                _tune(MMAP_MAX, MMAPS)
                _tune(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
                _tune(TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)
        give_back()


def _tune(parameter: int, value: int) -> None:
    """Set a parameter of glibc's, unless a user has set any."""
    tune = _of_libc("mallopt")
    ours = not any(name in os.environ for name in TUNED_BY)
    if tune is not None and ours and "malloc" not in os.environ.get("GLIBC_TUNABLES", ""):
        tune(parameter, value)


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
def _of_libc(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # Another C library, or Windows.
        return None
