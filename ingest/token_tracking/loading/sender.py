"""The thread that writes what a load reads, and what became of it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import psycopg

from ..database import BatchResult, Database
from .plan import Accepted, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..database import Kind

logger = logging.getLogger(__name__)

PATIENCE: Final = 60.0  # seconds that one statement may take
BACK_OFF: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
SECONDS_TO_STOP: Final = 10.0
_QUEUED: Final = 2  # slices; more would only cost memory
PROBLEMS_KEPT: Final = 5


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a row does not count: its file and 1-based line."""

    name: str
    line: int
    kind: Kind
    reason: str


@dataclass(slots=True)
class FileReport:
    """What became of the rows of one file; what is counted here is committed."""

    name: str
    recorded: int = 0
    known: int = 0
    conflicts: int = 0
    refused: int = 0
    sent_again: int = 0
    notes: list[str] = field(default_factory=list[str])
    problems: list[RowProblem] = field(default_factory=list[RowProblem])

    @property
    def rows(self) -> int:
        """Return how many rows have their answer."""
        return self.recorded + self.known + self.conflicts + self.refused

    def add_problem(self, line: int, kind: Kind, reason: str) -> None:
        """Keep one of the first problems."""
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(RowProblem(self.name, line, kind, reason))


class Sender:
    """Sends slices over one connection, on a thread of its own, in order.

    A connection that breaks is made anew a few times: the keys make it safe to send a slice again.
    """

    def __init__(self, dsn: str | None) -> None:
        self._dsn = dsn
        self._database: Database | None = None
        self._queue: queue.Queue[tuple[FileReport, Sequence[Accepted | Refused]] | None] = (
            queue.Queue(_QUEUED)
        )
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        # A daemon: a server that does not answer cannot keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="token-tracking-load", daemon=True)

    def start(self) -> None:
        """Connect and begin.

        Raises:
            psycopg.Error: the database cannot be reached.

        """
        self._database = Database.open(self._dsn, patience=PATIENCE)
        self._thread.start()

    def put(self, file: FileReport, rows: Sequence[Accepted | Refused]) -> None:
        """Queue a slice; wait while enough of them are queued.

        Raises:
            psycopg.Error: the thread has given up.

        """
        while True:
            self._raise_error()
            try:
                self._queue.put((file, rows), timeout=0.2)
            except queue.Full:
                continue
            return

    def finish(self) -> None:
        """Wait until all is written, and end.

        Raises:
            psycopg.Error: the thread has given up.

        """
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.2)
            except queue.Full:
                continue
            self._thread.join()
        self._raise_error()

    def stop(self) -> bool:
        """End after the slice that is being written; False where that takes too long."""
        self._stopping.set()
        with suppress(queue.Full):  # then the thread is not waiting for an entry
            self._queue.put_nowait(None)
        self._thread.join(SECONDS_TO_STOP)
        return not self._thread.is_alive()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (entry := self._queue.get()) is not None and not self._stopping.is_set():
                self._send(*entry)
        except BaseException as error:  # noqa: BLE001  # it belongs to who waits for this thread
            self._error = error
        finally:
            if self._database is not None:
                self._database.close()

    def _send(self, file: FileReport, rows: Sequence[Accepted | Refused]) -> None:
        accepted = [row for row in rows if isinstance(row, Accepted)]
        refused = [row for row in rows if isinstance(row, Refused)]
        for attempt, pause in enumerate((*BACK_OFF, None)):
            try:
                if self._database is None:
                    self._database = Database.open(self._dsn, patience=PATIENCE)
                if accepted:
                    started = time.perf_counter()
                    payload = b"[" + b",".join(row.payload for row in accepted) + b"]"
                    result = self._database.record(payload)
                    logger.debug(
                        "committed %d row(s) in %.1f ms",
                        len(accepted),
                        (time.perf_counter() - started) * 1000,
                    )
                    _count(file, accepted, result)
                    file.sent_again += len(accepted) if attempt else 0
                    accepted = []
                if refused:
                    with self._database.pipeline():
                        for row in refused:
                            self._database.reject(row.payload, row.reason)
                    file.refused += len(refused)
                    for row in refused:
                        file.add_problem(row.line, "rejection", row.reason)
            except psycopg.OperationalError as error:
                if self._database is not None:
                    self._database.close()
                    self._database = None
                if pause is None or self._stopping.is_set():
                    raise
                logger.debug("attempt %d failed: %s", attempt + 1, type(error).__name__)
                self._stopping.wait(pause)
            else:
                return


def _count(file: FileReport, rows: Sequence[Accepted], result: BatchResult) -> None:
    file.recorded += result.recorded
    file.known += result.duplicates
    file.conflicts += result.conflicts
    file.refused += result.rejected
    for problem in result.problems:
        if problem.index is not None:
            file.add_problem(rows[problem.index].line, problem.kind, problem.reason)
