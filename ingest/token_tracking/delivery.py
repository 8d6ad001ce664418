"""Sending a batch of requests: in order, resumable, and with poison kept to itself."""

from __future__ import annotations

import logging
import time
from collections import Counter
from enum import Enum
from operator import attrgetter
from typing import TYPE_CHECKING

from .complaints import complaints
from .logs import SafeLogger
from .requests import Answer, EventRequest, Outcome, OwnerRequest, RejectionRequest, VoidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeVar

    from .database import BatchResult, Database
    from .requests import Request, SingleRequest

    T = TypeVar("T")

logger = SafeLogger(__name__)

# More in one statement gains nothing, and would hold locks and the loop for longer.
MAX_BATCH = 500
MAX_BATCH_BYTES = 1024 * 1024

_RECORDED = Answer(Outcome.RECORDED)
_SPOOLED = Answer(Outcome.SPOOLED)


def in_slices(
    requests: Iterable[Request], count: int = MAX_BATCH, most_bytes: int = MAX_BATCH_BYTES
) -> Iterator[list[Request]]:
    """Cut requests into lists of at most `count`, and of `most_bytes` where more than one."""
    part: list[Request] = []
    size = 0
    for request in requests:
        size += len(request.payload)
        if part and (size > most_bytes or len(part) == count):
            yield part
            part, size = [], len(request.payload)
        part.append(request)
    if part:
        yield part


class Fault(Enum):
    """What an error says about a statement and about the next one."""

    UNKNOWN = "the connection is lost, or waited for too long: it may be committed"
    PASSING = "rolled back for others' sake: the same statement can succeed at once"
    POISON = "something in the statement itself is at fault"
    OUTAGE = "rolled back, and so would be any other statement"


def fault_of(error: BaseException, database: Database | None) -> Fault:
    """Say what an error means for the statement that it stopped."""
    state = getattr(error, "sqlstate", None)
    if database is None or isinstance(error, MemoryError):
        return Fault.OUTAGE
    if state is None:
        # The driver itself refused a value where the connection is none the worse for it.
        return Fault.POISON if database.is_idle() else Fault.UNKNOWN
    # The last words of a server or of a pooler that goes away can come before or after a commit.
    if database.broken or state[:2] == "08" or state[:3] == "57P":
        return Fault.UNKNOWN
    # 23505: the procedures handle each key that a statement sees; this one came in between.
    if state in {"40001", "40P01", "55P03", "57014", "23505"}:
        return Fault.PASSING
    return Fault.POISON if state[:2] in {"21", "22", "23", "54"} else Fault.OUTAGE


def cause_of(error: BaseException) -> str:
    """Name an error by class and SQLSTATE: its own text may show a host, a user or a value."""
    state = getattr(error, "sqlstate", None)
    return f"{type(error).__name__} {state}" if state else type(error).__name__


class Delivery:
    """The progress of one batch. `send` may be called until nothing is pending."""

    def __init__(self, requests: Iterable[Request]) -> None:
        everything = list(requests)
        # Events first, all in one statement; whatever else there is goes one by one.
        self._events: list[Sequence[EventRequest]] = []
        events = [request for request in everything if type(request) is EventRequest]
        if events:
            self._events.append(sorted(events, key=attrgetter("order")))
        others = everything if len(events) < len(everything) else []
        self._rejections = [one for one in others if isinstance(one, RejectionRequest)]
        self._others: list[SingleRequest] = [
            one for one in others if isinstance(one, VoidRequest | OwnerRequest)
        ]
        self._early: list[EventRequest] = []
        self.answered: list[tuple[Request, Answer]] = []
        self.outcomes: Counter[Outcome] = Counter()
        self.attempts = 0

    def pending(self) -> list[Request]:
        """Return what has no answer yet."""
        events = (event for part in self._events for event in part)
        return [*events, *self._rejections, *self._others, *self._early]

    def take_as_kept(self) -> None:
        """Answer what is pending: it is in the spool. A refused call stays one."""
        for request in self.pending():
            refused = isinstance(request, RejectionRequest)
            answer = Answer(Outcome.REJECTED, request.reason) if refused else _SPOOLED
            self.answered.append((request, answer))
            self.outcomes[answer.outcome] += 1
        self._events, self._rejections, self._others, self._early = [], [], [], []

    def log_answers(self) -> None:
        """Log how each request ended: at DEBUG, and above where somebody must mend a call."""
        if self.outcomes[Outcome.CONFLICT] or self.outcomes[Outcome.REJECTED]:
            for _, answer in self.answered:
                if answer.outcome in {Outcome.CONFLICT, Outcome.REJECTED}:
                    complaints.log(
                        logger,
                        logging.WARNING,
                        "usage not counted (%s): %s",
                        answer.outcome,
                        answer.reason,
                    )
        if logger.is_enabled_for(logging.DEBUG):
            for request, answer in self.answered:
                logger.debug("%s %s: %s", request.kind, request.order[1], answer.outcome)

    def send(self, database: Database, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Send what is pending; after an error, what was committed before it keeps its answer.

        `meanwhile` is called while the server works on events, or before what may take long.

        An event that is ahead of the server's clock stays pending: the clock that accepted it is
        wrong, and the server would refuse what was accepted.

        Raises:
            psycopg.Error: see `fault_of`; poison is isolated here and never raised.

        """
        self.attempts += 1
        if database.clock_was_set():
            meanwhile()
        self._hold_back(database.latest_occurrence())
        if not self._events:
            meanwhile()
        while self._events:
            part = self._events[-1]
            try:
                self._try(database, part, lambda part=part: self._record(database, part, meanwhile))
            except Exception as error:
                if fault_of(error, database) is not Fault.POISON:
                    raise
                if len(part) > 1:
                    half = len(part) // 2
                    self._events[-1:] = [part[half:], part[:half]]
                    continue
                self._refuse(database, part[0], error)
                self._events.pop()
        self._send_rejections(database)
        while self._others:
            request = self._others[0]
            try:
                answer = self._try(
                    database, [request], lambda request=request: request.send(database)
                )
            except Exception as error:
                if fault_of(error, database) is not Fault.POISON:
                    raise
                self._refuse(database, request, error)
            else:
                self.answered.append((request, answer))
                self.outcomes[answer.outcome] += 1
            self._others.pop(0)

    def _send_rejections(self, database: Database) -> None:
        """Write all that were refused before at once: who calls badly does so often."""
        try:
            if self._rejections:
                kept = [(one.payload, one.reason) for one in self._rejections]
                self._try(database, self._rejections, lambda: database.reject_all(kept))
        except Exception as error:
            if fault_of(error, database) is not Fault.POISON:
                raise
            self._others = [*self._rejections, *self._others]
        else:
            self.outcomes[Outcome.REJECTED] += len(self._rejections)
            for request in self._rejections:
                self.answered.append((request, Answer(Outcome.REJECTED, request.reason)))
        self._rejections = []

    def _hold_back(self, latest: bytes) -> None:
        for number, part in enumerate(self._events):
            if early := [event for event in part if event.occurred_at() > latest]:
                logger.debug("held back %d event(s) ahead of the server's clock", len(early))
                self._early += early
                self._events[number] = [e for e in part if e.occurred_at() <= latest]
        self._events = [part for part in self._events if part]

    def _try(self, database: Database, requests: Sequence[Request], act: Callable[[], T]) -> T:
        try:
            return act()
        except BaseException as error:
            # What the server did not say, but memory or a log handler, may come after a commit.
            state = getattr(error, "sqlstate", None)
            if state is None or fault_of(error, database) is Fault.UNKNOWN:
                for request in requests:
                    request.uncertain = True
            raise

    def _record(
        self, database: Database, events: Sequence[EventRequest], meanwhile: Callable[[], object]
    ) -> None:
        started = time.perf_counter()
        database.begin_to_record(b"[" + b",".join([event.payload for event in events]) + b"]")
        meanwhile()
        result = database.end_of_record()
        logger.debug(
            "committed a batch of %d event(s) in %.1f ms, attempt %d: "
            "%d recorded, %d known, %d in conflict, %d rejected",
            len(events),
            (time.perf_counter() - started) * 1000,
            self.attempts,
            result.recorded,
            result.duplicates,
            result.conflicts,
            result.rejected,
        )
        self._take(events, result)

    def _take(self, events: Sequence[EventRequest], result: BatchResult) -> None:
        problems = {
            problem.index: Answer(
                Outcome.CONFLICT if problem.kind == "conflict" else Outcome.REJECTED, problem.reason
            )
            for problem in result.problems
        }
        answers = (
            [(event, problems.get(index, _RECORDED)) for index, event in enumerate(events)]
            if problems
            else [(event, _RECORDED) for event in events]
        )
        # The procedure counts what is new and what was known; to its caller both are durable.
        ended = Counter(
            {
                Outcome.RECORDED: result.recorded,
                Outcome.DUPLICATE: result.duplicates,
                Outcome.CONFLICT: result.conflicts,
                Outcome.REJECTED: result.rejected,
            }
        )
        # From here on nothing fails: they are answered, counted and not pending, or nothing of it.
        self.answered += answers
        self.outcomes.update(ended)
        self._events.pop()

    def _refuse(self, database: Database, request: Request, error: Exception) -> None:
        """Keep it as a rejection; where not even that can be written, it is refused."""
        cause = cause_of(error)
        reason = f"{request.kind}: the database refuses it, {cause}; must be what a row can hold"
        answer = Answer(Outcome.REJECTED, reason)
        try:
            self._try(database, [request], lambda: database.reject(request.payload, reason))
        except Exception as second:
            if fault_of(second, database) is not Fault.POISON:
                raise
            cause = cause_of(second)
            complaints.log(logger, logging.ERROR, "a %s cannot be written: %s", request.kind, cause)
            answer = Answer(Outcome.REFUSED, f"the database refuses it: {cause}")
        self.outcomes[answer.outcome] += 1
        self.answered.append((request, answer))
