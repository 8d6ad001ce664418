"""A thread of ours: it outlives whatever goes wrong in it, and is started anew where it did not."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from .complaints import complaints, where
from .logs import SafeLogger, this_thread
from .runtimes import can_start_threads, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

logger = SafeLogger(__name__)

_PAUSE_SECONDS: Final = 0.01


class Worker:
    """Does one step after the other on a daemon thread, until a step says that it was the last.

    No method takes a lock that somebody else can hold for long, so all of them may be called from a
    signal's handler that interrupts another one of them.
    """

    def __init__(self, name: str, step: Callable[[], bool], *, writes_lines: bool = True) -> None:
        self._name = name
        self._step = step
        # Whether a log handler may hold this thread.
        self._writes_lines = writes_lines
        # Raw locks. The seat is taken by the thread itself: an exception of a signal's handler, in
        # who starts it, cannot leave it taken by nobody. The bell is rung by others.
        self._seat = threading.Lock()
        self._bell = threading.Lock()
        self._bell.acquire()
        self._thread: threading.Thread | None = None
        self.runs: Callable[[], bool] = self._seat.locked

    def start(self) -> bool:
        """Make sure that the thread runs; False where there is none to be had."""
        if not can_start_threads():
            return False  # nor does one that has started run any more
        if self._seat.locked():
            return True
        thread = start_thread(self._name, self._run)
        if thread is None:
            return self._seat.locked()
        # Until it is who runs, or another one was quicker: `join` is to know whom to wait for.
        while self._thread is not thread and thread.is_alive():
            time.sleep(0)
        return True

    def ring(self) -> None:
        """Let the step that waits go on, or the next one that would."""
        if self._bell.locked():
            with contextlib.suppress(RuntimeError):  # another one rang
                self._bell.release()

    def wait(self, timeout: float = -1) -> None:
        """Wait, in a step, until somebody rings, for `timeout` seconds at most."""
        self._bell.acquire(timeout=timeout)

    def join(self, timeout: float) -> bool:
        """Wait for the end of the last step; False where it did not come in time."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(max(0, timeout))
        return not thread.is_alive()

    def _run(self) -> None:
        if not self._seat.acquire(blocking=False):
            return  # another one was quicker
        self._thread = threading.current_thread()
        this_thread.writes = self._writes_lines
        try:
            while self._has_more():
                pass
        finally:
            self._seat.release()

    def _has_more(self) -> bool:
        try:
            return self._step()
        except BaseException as error:  # noqa: BLE001  # without the thread, later calls would wait
            complaints.log(
                logger,
                logging.ERROR,
                "%s in the thread %s:\n%s",
                type(error).__name__,
                self._name,
                where(error),
            )
            time.sleep(_PAUSE_SECONDS)
            return True
