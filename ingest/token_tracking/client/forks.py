"""Sections that a fork must not interrupt: imports, SQLite, log lines.

A child inherits their locks in the held state, without the threads that would release them. So a
fork is postponed until such a section ends, but only briefly: a dead disk or a full pipe can take
long. A section waits for forks only, never for another section: a disk that hangs blocks only the
thread that writes to it.
"""

from __future__ import annotations

import os
import threading
import time

BRIEF_SECONDS = 1.0
_LOOK_SECONDS = 0.0005


class PostponedForks:
    """Sections that postpone a fork by at most a second, and that wait as long for a fork.

    Sections may be nested and may fork themselves. Each thread changes only its own count, so there
    is no lock on which a signal handler could deadlock.
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
            # Count first, then check for a fork: a fork closes the door first, then counts.
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
        """Close the door and wait until no other thread is inside; return whether it is closed."""
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
        """Forget the parent's threads: those still inside do not exist in the child."""
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
