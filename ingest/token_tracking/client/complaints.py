"""Rate-limited log lines about single calls: a broken caller must not fill the disk.

No call is lost sight of: the statistics count each one, and refused payloads are kept.
"""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING

from .logs import Lines

if TYPE_CHECKING:
    from .logs import SafeLogger

BURST = 1000.0
PER_SECOND = 1.0


class Complaints:
    """Logs a burst of lines, then at most one a second with the number of lines left out."""

    def __init__(self) -> None:
        self._room = BURST
        self._at = time.monotonic()
        self._left_out = 0

    def log(self, logger: SafeLogger, level: int, message: str, *arguments: object) -> None:
        """Log at `level` within the rate limit, else at DEBUG."""
        now = time.monotonic()
        self._room = min(BURST, self._room + (now - self._at) * PER_SECOND)
        self._at = now
        if self._room < 1:
            self._left_out += 1
            logger.debug(message, *arguments)
            return
        self._room -= 1
        left_out, self._left_out = self._left_out, 0
        if left_out:
            message, arguments = f"{message} (%d such lines were left out)", (*arguments, left_out)
        logger.log(level, message, *arguments)


complaints = Complaints()


def where(error: BaseException) -> Lines:
    """Return the error's traceback without messages and source lines, which may show a value."""
    frames = traceback.extract_tb(error.__traceback__)
    return Lines(tuple(f"  {one.filename}, line {one.lineno}, in {one.name}" for one in frames))
