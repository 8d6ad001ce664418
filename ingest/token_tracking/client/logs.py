"""Loggers that harm nobody: no handler's error comes out, and a fork cuts no line in two.

What is logged can show a caller's text, such as a label: it is `escaped`, so that it ends no line
and commands no terminal.

The lock of a stream such as stderr is not renewed in a child; who forks while another thread writes
to it has a child that hangs at its first line. And a handler may hang: a full pipe, a dead host. So
a caller's lines are handed to a thread that writes them, and waited for only briefly.
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

_LOOP_SECONDS: Final = 0.002  # that a loop waits for a line
_CALL_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 0.0005
_MOST_LINES: Final = 1000  # that wait while a handler hangs; of more, the last ones


class _OfThread(threading.local):
    # Whether it writes lines itself: nobody is held by a thread of ours that a handler holds.
    writes = False


this_thread: Final = _OfThread()


class Speaker:
    """Writes lines on a thread that lives while there are some."""

    def __init__(self) -> None:
        self._lines: deque[tuple[Callable[[], object], threading.Lock]] = deque(maxlen=_MOST_LINES)
        self._seat = threading.Lock()
        self._thread: int | None = None
        self._hangs = False

    def say(self, line: Callable[[], object]) -> None:
        """Have the line written; wait for that briefly, and not at all where the last one hangs."""
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
            return False  # the system is full: they wait for the next line
        self._run()
        return True

    def _run(self) -> None:
        # Taken by who writes, and not by who has that thread started: an exception of a signal's
        # handler in there would leave it taken by nobody.
        if not self._seat.acquire(blocking=False):
            return
        try:
            self._write()
        finally:
            self._seat.release()
        self._start()  # what came in between

    def _write(self) -> None:
        self._thread = threading.get_ident()
        while self._lines:
            line, written = self._lines.popleft()
            # A handler that raises must end neither a thread of ours nor somebody's call.
            with suppress(Exception), forks.postponed:
                line()
            self._hangs = False
            written.release()
        self._thread = None


speaker = Speaker()


@dataclass(frozen=True)
class Lines:
    """An argument of several lines, of which none is a caller's text."""

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def _shown(argument: object) -> object:
    return argument if isinstance(argument, (int, float, Lines)) else escaped(str(argument))


class SafeLogger:
    """Logs as the module's logger does."""

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
            # Made here: it names this thread, this task and the line that logs.
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
    speaker = Speaker()  # its thread, and what it had to say, are the parent's


def _finish() -> None:
    speaker.finish()


atexit.register(_finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
