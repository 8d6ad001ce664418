"""The thread that writes the rows of a load, and the results."""

from __future__ import annotations

import logging
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Final

import psycopg

from ..client.connection import BatchResult, Connection
from ..errors import LoadError
from ..event.rules import canonical_time
from .own_keys import OwnKeys
from .plan import Accepted, Refused, time_of
from .recorded import Alike, Found, Recorded

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ..client.connection import Kind
    from .plan import Plan
    from .source import Source

logger = logging.getLogger(__name__)

PATIENCE: Final = 60.0  # seconds that one statement may take
BACK_OFF: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
SECONDS_TO_STOP: Final = 10.0
_QUEUED: Final = 2  # slices; more would only cost memory
PROBLEMS_KEPT: Final = 5
_EARLY: Final = (
    "occurred_at: more than 5 minutes ahead of the database's clock, which is behind this "
    "machine's; set it right and load the file again"
)
_OLD_SCHEMA: Final = (
    "what is recorded under other keys was not looked for, as the raw schema or its roles are of "
    "an earlier version: token-tracking schema apply"
)


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a row does not count: its file and 1-based line."""

    name: str
    line: int
    kind: Kind
    reason: str


@dataclass(slots=True)
class FileReport:
    """The results of one file's rows; the rows counted here are committed."""

    name: str
    recorded: int = 0
    known: int = 0
    conflicts: int = 0
    refused: int = 0
    sent_again: int = 0
    alike: int = 0  # already recorded under other keys; skipped or recorded again, as requested
    voided: int = 0  # known, but voided
    other_times: int = 0  # known, but recorded with another time
    first_other_time: str = ""
    has_wrong_times: bool = False  # among rows whose key is derived from their values
    unread: int | None = None  # the line from which on the file was left unread
    notes: list[str] = field(default_factory=list[str])
    problems: list[RowProblem] = field(default_factory=list[RowProblem])

    @property
    def rows(self) -> int:
        """Return how many rows have a result."""
        return self.recorded + self.known + self.conflicts + self.refused

    def add_problem(self, line: int, kind: Kind, reason: str) -> None:
        """Keep the problem if it is one of the first."""
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(RowProblem(self.name, line, kind, reason))

    def add_found(self, events: Sequence[Accepted], found: Found) -> None:
        """Count what was found for a slice that is being written."""
        self.alike += len(found.alike)
        self.voided += len(found.voided)
        self.other_times += len(found.other_times)
        for place, recorded in found.other_times:
            event = events[place]
            self.has_wrong_times = self.has_wrong_times or not event.is_named
            if not self.first_other_time:
                self.first_other_time = (
                    f"line {event.line}: {canonical_time(recorded.astimezone(UTC))} recorded, "
                    f"{time_of(event).decode()} in the file"
                )


class Sender:
    """Sends slices in order, over one connection on its own thread.

    It reconnects a few times if the connection breaks: the keys make it safe to resend a slice.
    """

    def __init__(self, dsn: str | None, plan: Plan, alike: Alike = Alike.STOP) -> None:
        self._dsn = dsn
        self._plan = plan
        self._alike = alike
        self._file: FileReport | None = None  # of the file being written
        self._recorded: Recorded | None = None
        self._own_keys: OwnKeys | None = None  # of that file, loaded on demand
        self._database: Connection | None = None
        self._queue: queue.Queue[tuple[Source, FileReport, Sequence[Accepted | Refused]] | None] = (
            queue.Queue(_QUEUED)
        )
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        # A daemon thread: an unresponsive server must not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name="token-tracking-load", daemon=True)

    def start(self) -> None:
        """Connect and start the thread.

        Raises:
            psycopg.Error: the database cannot be reached.

        """
        self._database = Connection.open(self._dsn, patience=PATIENCE)
        self._thread.start()

    def put(self, source: Source, file: FileReport, rows: Sequence[Accepted | Refused]) -> None:
        """Queue a slice of a source; wait while the queue is full.

        Raises:
            LoadError: a row is recorded under another key.
            psycopg.Error: the thread has given up.

        """
        while True:
            self._raise_error()
            try:
                self._queue.put((source, file, rows), timeout=0.2)
            except queue.Full:
                continue
            return

    def finish(self) -> None:
        """Wait until everything is written, and end the thread.

        Raises:
            LoadError: a row is recorded under another key.
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
        """End the thread after the current slice; return False if that takes too long."""
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
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits for this one
            self._error = error
        finally:
            self._forget_keys()
            if self._database is not None:
                self._database.close()

    def _send(self, source: Source, file: FileReport, rows: Sequence[Accepted | Refused]) -> None:
        accepted = [row for row in rows if isinstance(row, Accepted)]
        refused = [row for row in rows if isinstance(row, Refused)]
        for attempt, pause in enumerate((*BACK_OFF, None)):
            try:
                if self._database is None:
                    self._database = Connection.open(self._dsn, patience=PATIENCE)
                if accepted:
                    self._record(self._database, source, file, accepted)
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

    def _record(
        self, database: Connection, source: Source, file: FileReport, events: Sequence[Accepted]
    ) -> None:
        """Record events of a source, except those that are recorded under other keys."""
        if self._recorded is None or self._file is not file:
            self._recorded, self._file = Recorded(database), file
            self._forget_keys()
        recorded = self._recorded
        found = Found()
        is_looked_at = recorded.is_able and recorded.has_others(database, events)
        if is_looked_at:
            found = self._look(recorded, database, source, events)
        if found.alike and self._alike is Alike.STOP:
            raise _alike_error(file.name, events, found.alike)
        left_out = found.alike if self._alike is Alike.SKIP else frozenset[int]()
        kept = [event for place, event in enumerate(events) if place not in left_out]
        started = time.perf_counter()
        result = BatchResult(0, 0, 0, 0, 0, ())
        if kept:
            result = database.record(b"[" + b",".join(event.payload for event in kept) + b"]")
        logger.debug(
            "committed %d row(s) in %.1f ms", len(kept), (time.perf_counter() - started) * 1000
        )
        if result.duplicates and recorded.is_able and not is_looked_at:
            found = recorded.look(database, events)
        _count(file, kept, result)
        file.known += len(left_out)
        if not recorded.is_able and _OLD_SCHEMA not in file.notes:
            file.notes.append(_OLD_SCHEMA)
        recorded.claim(found)
        file.add_found(events, found)

    def _look(
        self, recorded: Recorded, database: Connection, source: Source, events: Sequence[Accepted]
    ) -> Found:
        found = recorded.look(database, events)
        if not found.alike or not source.can_be_read_again:
            return found
        # The event that looks alike may be another row of this file, identified by its key.
        times = {time_of(events[place]).decode() for place in found.alike}
        if self._own_keys is None:
            self._own_keys = OwnKeys(self._plan.timed_keys(source))
        return recorded.look(database, events, self._own_keys.at(times))

    def _forget_keys(self) -> None:
        if self._own_keys is not None:
            self._own_keys.close()
            self._own_keys = None


def _alike_error(name: str, events: Sequence[Accepted], alike: Collection[int]) -> LoadError:
    line = events[min(alike)].line
    more = f", and so are {len(alike) - 1:,} of the rows after it" if len(alike) > 1 else ""
    message = (
        f"{name}, line {line}: recorded already under another key, with this tenant, time and "
        f"tokens{more}, as where a column was added or values are written in another way: the "
        "load stops here, and nothing is counted twice. To leave such rows out: --alike skip; to "
        "record them because they are other calls: --alike record"
    )
    return LoadError(message, line=line)


def _count(file: FileReport, rows: Sequence[Accepted], result: BatchResult) -> None:
    file.recorded += result.recorded
    file.known += result.duplicates
    file.conflicts += result.conflicts
    # An early row stays in the file: the next load records it.
    file.refused += result.rejected + result.early
    for problem in result.problems:
        if problem.index is not None:
            reason = _EARLY if problem.kind == "early" else problem.reason
            file.add_problem(rows[problem.index].line, problem.kind, reason)
