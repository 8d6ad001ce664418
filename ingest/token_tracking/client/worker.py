"""A worker thread that survives exceptions and restarts if it dies."""

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
    """Runs `step` repeatedly on a daemon thread until it returns False.

    No method takes a lock that another thread can hold for long, so all of them may be called from
    a signal handler that interrupts another one of them.
    """

    def __init__(self, name: str, step: Callable[[], bool], *, writes_lines: bool = True) -> None:
        self._name = name
        self._step = step
        # Whether a hanging log handler may block this thread.
        self._writes_lines = writes_lines
        # Raw locks. The thread itself takes the seat: an exception from a signal handler in its
        # starter cannot leave it taken with no thread running. Other threads ring the bell.
        self._seat = threading.Lock()
        self._bell = threading.Lock()
        self._bell.acquire()
        self._thread: threading.Thread | None = None
        self.runs: Callable[[], bool] = self._seat.locked

    def start(self) -> bool:
        """Make sure that the thread runs; return False if no thread can be started."""
        if not can_start_threads():
            return False  # a thread that was started does not run any more either
        if self._seat.locked():
            return True
        thread = start_thread(self._name, self._run)
        if thread is None:
            return self._seat.locked()
        # Wait until it runs, or has ended since another thread was first: `join` needs to know
        # which thread to wait for.
        while self._thread is not thread and thread.is_alive():
            time.sleep(0)
        return True

    def ring(self) -> None:
        """Wake up the waiting step, or the next one that would wait."""
        if self._bell.locked():
            with contextlib.suppress(RuntimeError):  # another thread rang
                self._bell.release()

    def wait(self, timeout: float = -1) -> None:
        """Wait, within a step, for `ring` or for at most `timeout` seconds."""
        self._bell.acquire(timeout=timeout)

    def join(self, timeout: float) -> bool:
        """Wait for the end of the last step; return False if `timeout` seconds were not enough."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(max(0, timeout))
        return not thread.is_alive()

    def _run(self) -> None:
        if not self._seat.acquire(blocking=False):
            return  # another thread was first
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
        except BaseException as error:  # noqa: BLE001  # if the thread died, later calls would wait
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
