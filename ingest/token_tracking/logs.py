"""Loggers that harm nobody: no handler's error comes out, and a fork cuts no line in two.

The lock of a stream such as stderr is not renewed in a child; who forks while another thread writes
to it has a child that hangs at its first line.
"""

from __future__ import annotations

import contextlib
import logging

from . import forks


class SafeLogger:
    """Logs as the module's logger does. Not to be used inside of `forks.undivided`."""

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
        speaking = forks.speaking  # a forked child has another one
        # Not for ever: a handler may hold a lock of its own and wait for one of us.
        held = speaking.acquire(timeout=forks.BRIEF_SECONDS)
        try:
            # A handler that raises must end neither a thread of ours nor somebody's call.
            with contextlib.suppress(Exception):
                self._logger.log(level, message, *arguments, stacklevel=3)
        finally:
            if held:
                speaking.release()
