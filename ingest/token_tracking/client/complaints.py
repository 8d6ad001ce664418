"""Log lines about single calls, few enough to be read: a broken caller must not fill the disk.

Nothing is hidden: each such call is counted in the statistics, and refused payloads are kept.
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
    """Lets a burst of lines through, then one a second; that one tells how many it left out."""

    def __init__(self) -> None:
        self._room = BURST
        self._at = time.monotonic()
        self._left_out = 0

    def log(self, logger: SafeLogger, level: int, message: str, *arguments: object) -> None:
        """Log at `level` while there is room, else at DEBUG."""
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
    """Say where in the code an error was raised; its message and the code may show a value."""
    frames = traceback.extract_tb(error.__traceback__)
    return Lines(tuple(f"  {one.filename}, line {one.lineno}, in {one.name}" for one in frames))
