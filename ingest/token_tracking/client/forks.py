"""What a fork must not cut in two: imports, SQLite, log lines.

A child inherits the locks of these as they are, held by threads that it does not have. So a
fork is postponed until such a section ends, but not for long: a dead disk or a full pipe can take
its time. A section waits for forks alone, never for another section: a disk that hangs holds nobody
but the thread that writes to it.
"""

from __future__ import annotations

import os
import threading
import time

BRIEF_SECONDS = 1.0
_LOOK_SECONDS = 0.0005


class PostponedForks:
    """Sections that a fork waits for, a second at most, and that wait as long for a fork.

    Sections may be nested and may fork themselves. Each thread changes only its own count, so there
    is no lock that a signal handler could run into.
    """

    def __init__(self) -> None:
        self._inside: dict[int, int] = {}
        self._forking = threading.Lock()
        self._forker: int | None = None

    def __enter__(self) -> None:
        me = threading.get_ident()
        depth = self._inside.get(me, 0)
        until = time.monotonic() + BRIEF_SECONDS
        while True:
            # Counted before it looks, as a fork closes the door before it counts.
            self._inside[me] = depth + 1
            left = until - time.monotonic()
            if depth or self._forker == me or left <= 0 or not self._forking.locked():
                return
            del self._inside[me]
            if self._forking.acquire(timeout=left):
                self._forking.release()

    def __exit__(self, *_: object) -> None:
        me = threading.get_ident()
        if self._inside[me] > 1:
            self._inside[me] -= 1
        else:
            del self._inside[me]

    def before(self) -> bool:
        """Close the door and wait until nobody else is inside; say whether it could be closed."""
        me = threading.get_ident()
        until = time.monotonic() + BRIEF_SECONDS
        closed = self._forking.acquire(timeout=BRIEF_SECONDS)
        if closed:
            self._forker = me
        while self._inside.keys() - {me} and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
        return closed

    def after(self) -> None:
        """Open the door again."""
        self._forker = None
        self._forking.release()

    def after_in_child(self) -> None:
        """Forget the threads of the parent: who could not be waited for never comes out here."""
        me = threading.get_ident()
        self._inside = {me: self._inside[me]} if me in self._inside else {}
        self._forking = threading.Lock()
        self._forker = None


postponed = PostponedForks()
_fork = threading.local()


def _before() -> None:
    _fork.closed = postponed.before()


def _after() -> None:
    if _fork.closed:
        postponed.after()


def _after_in_child() -> None:
    postponed.after_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
