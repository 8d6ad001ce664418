"""What a fork must not cut in two: imports, SQLite, log lines.

A child inherits the locks of these as they are, held by threads that it does not have. So forks
wait until it is over; but not for long where a dead disk or a full pipe can take its time.
"""

from __future__ import annotations

import os
import threading

BRIEF_SECONDS = 1.0

# Re-entrant: what is undivided may fork by itself. `speaking` is taken before `undivided`.
speaking = threading.RLock()
undivided = threading.RLock()
_fork = threading.local()


def _before() -> None:
    locks = (speaking, undivided)
    _fork.held = [lock for lock in locks if lock.acquire(timeout=BRIEF_SECONDS)]


def _after() -> None:
    for lock in reversed(_fork.held):
        lock.release()


def _after_in_child() -> None:
    global speaking, undivided  # noqa: PLW0603
    _after()
    # Who could not be waited for is a thread of the parent: it never gives its lock back here.
    if speaking not in _fork.held:
        speaking = threading.RLock()
    if undivided not in _fork.held:
        undivided = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
