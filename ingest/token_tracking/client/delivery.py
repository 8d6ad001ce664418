"""Sending a batch of requests: in order, resumable; what is poison or waits harms no other one."""

from __future__ import annotations

import logging
import time
from collections import Counter
from enum import Enum
from itertools import groupby
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING

from ..event.kept import keepable
from .complaints import complaints
from .held_keys import HeldKeys
from .logs import SafeLogger
from .requests import Answer, EventRequest, Outcome, OwnerRequest, RejectionRequest, VoidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeVar

    from .connection import BatchResult, Connection
    from .requests import Request, SingleRequest

    T = TypeVar("T")

logger = SafeLogger(__name__)

# More in one statement gains nothing, and would hold locks and the loop for longer.
MAX_BATCH = 500
MAX_BATCH_BYTES = 1024 * 1024

# Milliseconds that a statement waits for a lock: long enough for writers that share keys and
# commit; and while it is known that something is held.
_LOCK_TIMEOUT = 250
_SHORT_LOCK_TIMEOUT = 50
_SHORTEST_LOCK_TIMEOUT = 10  # where many are held
# What waits is cut into so many parts: each level costs one wait, and a part that does not wait is
# a few milliseconds.
_PARTS = 8
# So many wait alone, and nothing of their kind gets through: it is not about single keys.
_MOST_WAITS = 4
_MOST_WAITS_OF_RETRIES = 40  # which nobody waits for
_LEAST_SECONDS = 0.02  # for one more statement
_COMPARE_AGAIN_SECONDS = 1.0
_CANCELED = "57014"

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
    WAITING = "rolled back since it waited for too long, perhaps for a lock of one row"
    POISON = "something in the statement itself is at fault"
    OUTAGE = "rolled back, and so would be any other statement"


def fault_of(error: BaseException, database: Connection | None) -> Fault:
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
    if state in {"40001", "40P01", "23505"}:
        return Fault.PASSING
    if state in {"55P03", "57014"}:
        return Fault.WAITING
    return Fault.POISON if state[:2] in {"21", "22", "23", "54"} else Fault.OUTAGE


def cause_of(error: BaseException) -> str:
    """Name an error by class and SQLSTATE: its own text may show a host, a user or a value."""
    state = getattr(error, "sqlstate", None)
    return f"{type(error).__name__} {state}" if state else type(error).__name__


_MEANINGS = {
    "25006": "the server or this database or role is read only: is it a standby, or is "
    "default_transaction_read_only on?",
    "25P04": "transaction_timeout of this role, database or server is shorter than a batch needs",
    "55P03": "another session holds a lock on a table of token_tracking_raw: see pg_locks",
    "57014": "statement_timeout of this role, database or server is shorter than a batch needs, "
    "or somebody cancels our statements",
}


def explained(error: BaseException) -> str:
    """Name an error as `cause_of` does, and what to look at where one setting is to blame."""
    meaning = _MEANINGS.get(getattr(error, "sqlstate", None) or "")
    return f"{cause_of(error)}: {meaning}" if meaning else cause_of(error)


class Delivery:
    """The progress of one batch. `send` may be called until nothing is pending.

    What waits for a lock of another transaction is set aside, and its key is put into `held`; what
    has the same key goes behind it. A delivery that `retries` tries them again, key by key, when
    they are due.
    """

    def __init__(
        self, requests: Iterable[Request], held: HeldKeys | None = None, *, retries: bool = False
    ) -> None:
        everything = list(requests)
        self._held = HeldKeys() if held is None else held
        self._retries = retries
        self._aside: list[Request] = []
        # By kind: how many waited alone, and whether anything was written.
        self._waited: Counter[str] = Counter()
        self._through: set[str] = set()
        self._knows_of_waits = False
        self._table_is_free = False
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
        """Return what has no answer yet, those of one key in their order."""
        # The last part is the next one.
        events = (event for part in reversed(self._events) for event in part)
        return [*self._aside, *events, *self._rejections, *self._others, *self._early]

    def set_aside(self) -> list[Request]:
        """Return what waits for a lock, or behind what does."""
        return self._aside

    def early(self) -> list[EventRequest]:
        """Return what is ahead of the server's clock."""
        return self._early

    def has_untried(self) -> bool:
        """Say whether something is pending that was neither set aside nor is early."""
        return bool(self._events or self._rejections or self._others)

    def take_as_kept(self) -> None:
        """Answer what is pending: it is in the spool. A refused call stays one."""
        for request in self.pending():
            refused = isinstance(request, RejectionRequest)
            answer = Answer(Outcome.REJECTED, request.reason) if refused else _SPOOLED
            self.answered.append((request, answer))
            self.outcomes[answer.outcome] += 1
        self._events, self._rejections, self._others, self._early = [], [], [], []
        self._aside = []

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

    def send(
        self,
        database: Connection,
        meanwhile: Callable[[], object] = lambda: None,
        until: float = inf,
    ) -> None:
        """Send what is pending; after an error, what was committed before it keeps its answer.

        `meanwhile` is called while the server works on events, or before what may take long.
        `until` is when the search for what waits for a lock has to end, by the monotonic clock:
        what was not tried by then stays pending.

        An event that is ahead of the server's clock stays pending: one of the two clocks is wrong,
        and what was accepted is not refused for that.

        Raises:
            psycopg.Error: see `fault_of`; poison is isolated here and never raised, nor is what
                waits, unless everything does.

        """
        self.attempts += 1
        self._knows_of_waits = bool(self._held)
        if database.clock_was_set():
            meanwhile()
        self._hold_back(database)
        self._part_from_held()
        if not self._events:
            meanwhile()
        while self._events and self._has_time(until):
            part = self._events[-1]
            if self._goes_behind(part):
                self._events.pop()
                continue
            waited_briefly = self._bound_waits(database)
            try:
                early = self._try(
                    database, part, lambda part=part: self._record(database, part, meanwhile)
                )
            except Exception as error:
                fault = fault_of(error, database)
                if fault is Fault.WAITING:
                    meanwhile()
                    self._cut(database, part, error, waited_briefly)
                    if self._is_about_all("event"):
                        if self._retries:
                            break
                        raise
                elif fault is not Fault.POISON:
                    raise
                elif len(part) > 1:
                    half = len(part) // 2
                    self._events[-1:] = [part[half:], part[:half]]
                else:
                    self._refuse(database, part[0], error)
                    self._events.pop()
            else:
                self._got_through(part)
                if early:
                    logger.debug("kept %d event(s) that the server calls early", early)
                    database.compare_clocks()
                    self._hold_back(database)
        self._leave_held()
        self._send_rejections(database)
        self._send_others(database, until)

    def _send_others(self, database: Connection, until: float) -> None:
        while self._others:
            request = self._others[0]
            if not self._has_time(until):
                self._leave(self._others)
                self._others = []
                return
            if self._goes_behind([request]):
                self._others.pop(0)
                continue
            waited_briefly = self._bound_waits(database)
            try:
                answer = self._try(
                    database, [request], lambda request=request: request.send(database)
                )
            except Exception as error:
                fault = fault_of(error, database)
                if fault is Fault.WAITING:
                    self._knows_of_waits = True
                    if not self._put_off([request], error, waited_briefly):
                        continue
                    if self._is_about_all(request.kind):
                        self._leave([one for one in self._others[1:] if one.kind == request.kind])
                        self._others[1:] = [
                            one for one in self._others[1:] if one.kind != request.kind
                        ]
                elif fault is Fault.POISON:
                    self._refuse(database, request, error)
                else:
                    raise
            else:
                self._got_through([request])
                self.answered.append((request, answer))
                self.outcomes[answer.outcome] += 1
            self._others.pop(0)

    def _send_rejections(self, database: Connection) -> None:
        """Write all that were refused before at once: who calls badly does so often."""
        if self._held and any(one.lock_key() in self._held for one in self._rejections):
            self._others = [*self._rejections, *self._others]
            self._rejections = []
        try:
            if self._rejections:
                self._bound_waits(database)
                kept = [(one.payload, one.reason) for one in self._rejections]
                self._try(database, self._rejections, lambda: database.reject_all(kept))
        except Exception as error:
            fault = fault_of(error, database)
            if fault not in {Fault.POISON, Fault.WAITING}:
                raise
            self._knows_of_waits |= fault is Fault.WAITING
            self._others = [*self._rejections, *self._others]
        else:
            self.outcomes[Outcome.REJECTED] += len(self._rejections)
            for request in self._rejections:
                self.answered.append((request, Answer(Outcome.REJECTED, request.reason)))
        self._rejections = []

    def _hold_back(self, database: Connection) -> None:
        latest = database.latest_occurrence()
        for number, part in enumerate(self._events):
            if early := [event for event in part if event.occurred_at() > latest]:
                if time.monotonic() - database.compared_at > _COMPARE_AGAIN_SECONDS:
                    database.compare_clocks()  # the server's may have been set
                    self._hold_back(database)
                    return
                logger.debug("held back %d event(s) ahead of the server's clock", len(early))
                self._early += early
                self._events[number] = [e for e in part if e.occurred_at() <= latest]
        self._events = [part for part in self._events if part]

    def _part_from_held(self) -> None:
        """Leave events of held keys out of what is sent together: each key is a part of its own."""
        if not self._held:
            return
        together: list[Sequence[EventRequest]] = []
        alone: list[Sequence[EventRequest]] = []
        for part in self._events:
            free: list[EventRequest] = []
            for _, same in groupby(part, attrgetter("order")):
                events = list(same)
                if events[0].lock_key() in self._held:
                    alone.append(events)
                else:
                    free += events
            if free:
                together.append(free)
        self._events = [*reversed(alone), *together]

    def _goes_behind(self, same: Sequence[Request]) -> bool:
        """Set these aside where others with their one key were, and say so."""
        if not self._held or same[0].order != same[-1].order:
            return False
        key = same[0].lock_key()
        if self._held.is_due(key) if self._retries else key not in self._held:
            return False
        self._leave(same)
        return True

    def _leave_held(self) -> None:
        """Set aside what is left of held keys, so that these stay known."""
        left, self._events = self._events, []
        for part in left:
            key = part[0].lock_key()
            if self._retries and part[0].order == part[-1].order and key in self._held:
                self._leave(part)
            else:
                self._events.append(part)

    def _leave(self, requests: Sequence[Request]) -> None:
        self._held.keep(request.lock_key() for request in requests)
        self._aside += requests

    def _got_through(self, requests: Sequence[Request]) -> None:
        self._through.add(requests[0].kind)
        if self._held and requests[0].lock_key() in self._held:
            self._held.got_through()

    def _has_time(self, until: float) -> bool:
        return not self._knows_of_waits or time.monotonic() + _LEAST_SECONDS < until

    def _is_about_all(self, kind: str) -> bool:
        most = _MOST_WAITS_OF_RETRIES if self._retries else _MOST_WAITS
        return self._waited[kind] >= most and kind not in self._through

    def _bound_waits(self, database: Connection) -> bool:
        """Bound how long the next statement waits for a lock; say whether that is a short time."""
        most = _SHORT_LOCK_TIMEOUT if self._knows_of_waits else _LOCK_TIMEOUT
        if self._waited.total() >= _MOST_WAITS:
            most = _SHORTEST_LOCK_TIMEOUT
        if database.patience is not None:  # so that the end of the wait is known
            most = min(most, int(500 * database.patience))
        database.lock_timeout = max(1, most)
        return self._knows_of_waits

    def _cut(
        self,
        database: Connection,
        part: Sequence[EventRequest],
        error: Exception,
        waited_briefly: bool,
    ) -> None:
        """Cut what waited into parts; the events of one key are set aside.

        The parts come behind all other ones, as what does not wait goes first within a call's time.
        A retry goes to the bottom of one part after the other: what it has learnt when its time is
        over, the next one need not find out again.

        Raises:
            psycopg.Error: every batch waits, or takes longer than it may.

        """
        self._knows_of_waits = True
        if not self._table_is_free:
            self._bound_waits(database)
            database.record(b"[]")  # which needs the locks of any batch, and no row's
            self._table_is_free = True
        if part[0].order == part[-1].order:
            if self._put_off(part, error, waited_briefly):
                self._events.pop()
            return
        parts: list[Sequence[EventRequest]] = []
        size = -(-len(part) // _PARTS)
        start = 0
        while start < len(part):
            end = start + size
            while end < len(part) and part[end].order == part[end - 1].order:
                end += 1  # the first one of a key counts, so they stay together
            parts.append(part[start:end])
            start = end
        rest = self._events[:-1]
        parts.reverse()
        self._events = [*rest, *parts] if self._retries else [*parts, *rest]

    def _put_off(self, same: Sequence[Request], error: Exception, waited_briefly: bool) -> bool:
        """Set aside what waits for a lock; False where it has to be tried again to know that."""
        if getattr(error, "sqlstate", None) == _CANCELED:
            if waited_briefly:
                raise error  # the wait for a lock would have ended before
            return False
        self._held.put_off(same[0].lock_key())
        self._aside += same
        self._waited[same[0].kind] += 1
        return True

    def _try(self, database: Connection, requests: Sequence[Request], act: Callable[[], T]) -> T:
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
        self, database: Connection, events: Sequence[EventRequest], meanwhile: Callable[[], object]
    ) -> int:
        """Record the events; return how many of them are ahead of the server's clock."""
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
        return result.early

    def _take(self, events: Sequence[EventRequest], result: BatchResult) -> None:
        problems: dict[int | None, Answer] = {}
        early: list[EventRequest] = []
        for problem in result.problems:
            if problem.kind == "early" and problem.index is not None:
                early.append(events[problem.index])
            else:
                outcome = Outcome.CONFLICT if problem.kind == "conflict" else Outcome.REJECTED
                problems[problem.index] = Answer(outcome, problem.reason)
        left = set(map(id, early))
        answers = (
            [
                (event, problems.get(index, _RECORDED))
                for index, event in enumerate(events)
                if id(event) not in left
            ]
            if result.problems
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
        self._early += early
        self._events.pop()

    def _refuse(self, database: Connection, request: Request, error: Exception) -> None:
        """Keep it as a rejection; where not even that can be written, it is refused."""
        cause = cause_of(error)
        reason = f"{request.kind}: the database refuses it, {cause}; must be what a row can hold"
        answer = Answer(Outcome.REJECTED, reason)
        try:
            try:
                self._try(database, [request], lambda: database.reject(request.payload, reason))
            except Exception as second:
                if fault_of(second, database) is not Fault.POISON:
                    raise
                # No JSON that the server reads, as what is nested too deep: its text.
                text = keepable(request.payload.decode("utf-8", "replace"))
                self._try(database, [request], lambda: database.reject(text, reason))
        except Exception as second:
            fault = fault_of(second, database)
            if fault is Fault.WAITING:
                self._knows_of_waits = True
                self._held.put_off(request.lock_key())
                self._aside.append(request)
                return
            if fault is not Fault.POISON:
                raise
            cause = cause_of(second)
            complaints.log(logger, logging.ERROR, "a %s cannot be written: %s", request.kind, cause)
            answer = Answer(Outcome.REFUSED, f"the database refuses it: {cause}")
        self.outcomes[answer.outcome] += 1
        self.answered.append((request, answer))
