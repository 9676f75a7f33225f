"""The sessions of all open pages: how many there are, and when one is let go."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from nerve_fast.app.session import Session
from nerve_fast.app.settings import AppSettings
from nerve_fast.pipeline import NervePipeline

MOST = 32
"""Sessions that hold an image's features at a time; the one unused for longest goes first."""

IDLE = 3600.0
"""Seconds after which an unused session is let go."""


class Sessions:
    """Sessions by the name that the browser's page has; safe to use from several threads.

    Args:
        pipe: what all of them share.
        settings: of the app.
        folder: in which each has a folder of its own, with a name that cannot be guessed.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        pipe: NervePipeline,
        settings: AppSettings,
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._pipe, self._settings, self._folder, self._clock = pipe, settings, folder, clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[Session, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, page: str) -> Session:
        """The session of a page, a new one where it has none; idle and surplus ones are closed."""
        now = self._clock()
        with self._lock:
            session, _ = self._known.pop(page, (None, now))
            if session is None:
                folder = self._folder / secrets.token_urlsafe(16)
                session = Session(self._pipe, self._settings, folder)
            self._known[page] = (session, now)
            # In the order of their latest use.
            while len(self._known) > MOST or now - next(iter(self._known.values()))[1] > IDLE:
                _, (surplus, _) = self._known.popitem(last=False)
                surplus.close()
        return session

    def close(self, page: str | None) -> None:
        """Let the session of a page go, where there is one."""
        with self._lock:
            session, _ = self._known.pop(page or "", (None, 0.0))
        if session is not None:
            session.close()
