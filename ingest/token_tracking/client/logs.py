"""Loggers that never raise a handler's error, and whose lines a fork does not interrupt.

A logged text may come from a caller, such as a label: it is `escaped`, so that it cannot end the
line or control a terminal.

Python does not renew the lock of a stream such as stderr in a child: if a process forks while
another thread writes to it, the child hangs at its first line. A handler may hang, too: a full
pipe, a dead host. So a thread writes a caller's lines, and the caller waits for it only briefly.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from ..escapes import escaped
from . import forks
from .runtimes import is_ending, is_in_task, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOP_SECONDS: Final = 0.002  # that an event loop waits for a line
_CALL_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 0.0005
_MOST_LINES: Final = 1000  # queued while a handler hangs; older ones are dropped


class _OfThread(threading.local):
    # Whether this thread writes lines itself: set for threads that a hanging handler may block.
    writes = False


this_thread: Final = _OfThread()


class Speaker:
    """Writes lines on a thread that runs while lines are queued."""

    def __init__(self) -> None:
        self._lines: deque[tuple[Callable[[], object], threading.Lock]] = deque(maxlen=_MOST_LINES)
        self._seat = threading.Lock()
        self._thread: int | None = None
        self._hangs = False

    def say(self, line: Callable[[], object]) -> None:
        """Queue the line; wait for it briefly, or not at all while the previous one hangs."""
        written = threading.Lock()
        written.acquire()
        self._lines.append((line, written))
        started = self._start()
        if started and not self._hangs and self._thread != threading.get_ident():
            seconds = _LOOP_SECONDS if is_in_task() else _CALL_SECONDS
            self._hangs = not written.acquire(timeout=seconds)

    def finish(self) -> None:
        """Wait, briefly, until all lines are written."""
        until = time.monotonic() + forks.BRIEF_SECONDS
        if self._start():
            while (self._lines or self._seat.locked()) and time.monotonic() < until:
                time.sleep(_LOOK_SECONDS)

    def _start(self) -> bool:
        if not self._lines or self._seat.locked():
            return True
        if start_thread("token-tracking-log", self._run) is not None:
            return True
        if not is_ending():
            return False  # no thread can be started: the lines wait for the next one
        self._run()
        return True

    def _run(self) -> None:
        # The writing thread takes the seat itself: if its starter took it, an exception from a
        # signal handler could leave it taken with no thread running.
        if not self._seat.acquire(blocking=False):
            return
        try:
            self._write()
        finally:
            self._seat.release()
        self._start()  # for lines queued in the meantime

    def _write(self) -> None:
        self._thread = threading.get_ident()
        while self._lines:
            line, written = self._lines.popleft()
            # A handler that raises must not end this thread or a caller's call.
            with suppress(Exception), forks.postponed:
                line()
            self._hangs = False
            written.release()
        self._thread = None


speaker = Speaker()


@dataclass(frozen=True)
class Lines:
    """A log argument of several lines, none of which holds a caller's text."""

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def _shown(argument: object) -> object:
    return argument if isinstance(argument, (int, float, Lines)) else escaped(str(argument))


class SafeLogger:
    """Logs to the module's logger."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self.is_enabled_for = self._logger.isEnabledFor

    def debug(self, message: str, *arguments: object) -> None:
        if self.is_enabled_for(logging.DEBUG):
            self._log(logging.DEBUG, message, arguments)

    def info(self, message: str, *arguments: object) -> None:
        self._log(logging.INFO, message, arguments)

    def warning(self, message: str, *arguments: object) -> None:
        self._log(logging.WARNING, message, arguments)

    def error(self, message: str, *arguments: object) -> None:
        self._log(logging.ERROR, message, arguments)

    def log(self, level: int, message: str, *arguments: object) -> None:
        self._log(level, message, arguments)

    def _log(self, level: int, message: str, arguments: tuple[object, ...]) -> None:
        if not self.is_enabled_for(level):
            return
        with suppress(Exception):
            logger = self._logger
            # Create the record here: it names this thread, this task and the logging line.
            shown = tuple(map(_shown, arguments))
            file, line, function, _ = logger.findCaller(stacklevel=3)
            record = logger.makeRecord(
                logger.name, level, file, line, message, shown, None, function
            )
            if this_thread.writes:
                with forks.postponed:
                    logger.handle(record)
            else:
                speaker.say(partial(copy_context().run, partial(logger.handle, record)))


def _after_fork_in_child() -> None:
    global speaker  # noqa: PLW0603
    speaker = Speaker()  # the old one's thread and lines belong to the parent


def _finish() -> None:
    speaker.finish()


atexit.register(_finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
