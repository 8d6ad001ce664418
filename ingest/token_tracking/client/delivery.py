"""Sends a batch of requests in order, resumably; isolates poison requests and those that wait."""

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

# A larger statement is no faster per event, and would hold locks and the loop for longer.
MAX_BATCH = 500
MAX_BATCH_BYTES = 1024 * 1024

# Milliseconds that a statement waits for a lock: long enough for other writers of the same keys to
# commit. The short one applies once a lock is known to be held.
_LOCK_TIMEOUT = 250
_SHORT_LOCK_TIMEOUT = 50
_SHORTEST_LOCK_TIMEOUT = 10  # once many locks are held
# Number of parts into which a waiting batch is cut: each level costs one lock timeout, and a part
# that does not wait takes a few milliseconds.
_PARTS = 8
# If so many keys wait one by one and no request of their kind gets through, the lock is not about
# single keys.
_MOST_WAITS = 4
_MOST_WAITS_OF_RETRIES = 40  # no caller waits for a retry
_LEAST_SECONDS = 0.02  # left before the deadline, to start one more statement
_COMPARE_AGAIN_SECONDS = 1.0
_CANCELED = "57014"

_RECORDED = Answer(Outcome.RECORDED)
_SPOOLED = Answer(Outcome.SPOOLED)


def in_slices(
    requests: Iterable[Request], count: int = MAX_BATCH, most_bytes: int = MAX_BATCH_BYTES
) -> Iterator[list[Request]]:
    """Split requests into lists of at most `count` requests and, unless single, `most_bytes`."""
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
    """What an error means for the failed statement and for the next one."""

    UNKNOWN = "the connection is lost, or waited for too long: it may be committed"
    PASSING = "rolled back for others' sake: the same statement can succeed at once"
    WAITING = "rolled back since it waited for too long, perhaps for a lock of one row"
    POISON = "something in the statement itself is at fault"
    OUTAGE = "rolled back, and so would be any other statement"


def fault_of(error: BaseException, database: Connection | None) -> Fault:
    """Classify an error by what it means for the failed statement."""
    state = getattr(error, "sqlstate", None)
    if database is None or isinstance(error, MemoryError):
        return Fault.OUTAGE
    if state is None:
        # If the connection is still idle, the driver itself rejected a value.
        return Fault.POISON if database.is_idle() else Fault.UNKNOWN
    # A server or pooler that shuts down may send its last error before or after the commit.
    if database.broken or state[:2] == "08" or state[:3] == "57P":
        return Fault.UNKNOWN
    # 23505: the procedures handle every visible duplicate; this key was committed concurrently.
    if state in {"40001", "40P01", "23505"}:
        return Fault.PASSING
    if state in {"55P03", "57014"}:
        return Fault.WAITING
    return Fault.POISON if state[:2] in {"21", "22", "23", "54"} else Fault.OUTAGE


def cause_of(error: BaseException) -> str:
    """Return an error's class and SQLSTATE: its message may show a host, a user or a value."""
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
    """Return `cause_of` the error, with a hint if one setting explains it."""
    meaning = _MEANINGS.get(getattr(error, "sqlstate", None) or "")
    return f"{cause_of(error)}: {meaning}" if meaning else cause_of(error)


class Delivery:
    """The progress of one batch; call `send` until nothing is pending.

    A request that waits for another transaction's lock is set aside and its key added to `held`;
    later requests with the same key queue behind it. A delivery that `retries` sends the requests
    of held keys again, key by key, when they are due.
    """

    def __init__(
        self, requests: Iterable[Request], held: HeldKeys | None = None, *, retries: bool = False
    ) -> None:
        everything = list(requests)
        self._held = HeldKeys() if held is None else held
        self._retries = retries
        self._aside: list[Request] = []
        # By kind: how many requests waited on their own, and whether any request was written.
        self._waited: Counter[str] = Counter()
        self._through: set[str] = set()
        self._knows_of_waits = False
        self._table_is_free = False
        # Events go first, in one statement; all other requests go one by one.
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
        """Return the unanswered requests, those of one key in their order."""
        # The last part is sent next.
        events = (event for part in reversed(self._events) for event in part)
        return [*self._aside, *events, *self._rejections, *self._others, *self._early]

    def set_aside(self) -> list[Request]:
        """Return the requests that wait for a lock, or behind one that does."""
        return self._aside

    def early(self) -> list[EventRequest]:
        """Return the events that are ahead of the server's clock."""
        return self._early

    def has_untried(self) -> bool:
        """Return whether a pending request is neither set aside nor early."""
        return bool(self._events or self._rejections or self._others)

    def take_as_kept(self) -> None:
        """Answer the pending requests as spooled; a refused call is still answered as refused."""
        for request in self.pending():
            refused = isinstance(request, RejectionRequest)
            answer = Answer(Outcome.REJECTED, request.reason) if refused else _SPOOLED
            self.answered.append((request, answer))
            self.outcomes[answer.outcome] += 1
        self._events, self._rejections, self._others, self._early = [], [], [], []
        self._aside = []

    def log_answers(self) -> None:
        """Log each request's outcome: at DEBUG, or higher if a caller has to be fixed."""
        if self.outcomes[Outcome.CONFLICT] or self.outcomes[Outcome.REJECTED]:
            for request, answer in self.answered:
                if isinstance(request, RejectionRequest) and request.is_told:
                    continue
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
        """Send the pending requests; those committed before an error keep their answer.

        `meanwhile` is called while the server works on events, or before anything slow. `until` is
        the deadline, by the monotonic clock, of the search for requests that wait for a lock: those
        not tried by then stay pending.

        An event that is ahead of the server's clock stays pending: one of the two clocks is wrong,
        and an accepted event is not refused for that.

        Raises:
            psycopg.Error: see `fault_of`. Poison is isolated here and never raised; a lock wait is
                raised only if every request waits.

        """
        self.attempts += 1
        self._knows_of_waits = bool(self._held)
        prepares = bool(self._events) and database.is_to_prepare()
        if prepares or database.clock_was_set():
            meanwhile()
        if prepares:
            database.prepare()
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
                    logger.debug("kept %d event(s) that are early for the server", early)
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
        """Write all earlier refused payloads in one statement: a faulty caller makes many."""
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
                    database.compare_clocks()  # the server's clock may have been set
                    self._hold_back(database)
                    return
                logger.debug("held back %d event(s) ahead of the server's clock", len(early))
                self._early += early
                self._events[number] = [e for e in part if e.occurred_at() <= latest]
        self._events = [part for part in self._events if part]

    def _part_from_held(self) -> None:
        """Separate the events of held keys from the common batch, one part for each key."""
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
        """Set requests of one key aside if others with the key are; return whether it did."""
        if not self._held or same[0].order != same[-1].order:
            return False
        key = same[0].lock_key()
        if self._held.is_due(key) if self._retries else key not in self._held:
            return False
        self._leave(same)
        return True

    def _leave_held(self) -> None:
        """Set the unsent parts of held keys aside, so that their keys stay in `held`."""
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
        """Set the next statement's lock timeout; return whether it is a short one."""
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
        """Split a part that waited for a lock; set it aside if it holds a single key.

        The new parts go last, so that events which need not wait are sent within the call's time. A
        retry works through one part completely before the next instead: what it has learnt when its
        time is over, the next retry need not find out again.

        Raises:
            psycopg.Error: every batch waits, or exceeds its time limit.

        """
        self._knows_of_waits = True
        if not self._table_is_free:
            self._bound_waits(database)
            database.record(b"[]")  # takes the table locks of any batch, and no row locks
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
                end += 1  # keep a key together: its first event counts
            parts.append(part[start:end])
            start = end
        rest = self._events[:-1]
        parts.reverse()
        self._events = [*rest, *parts] if self._retries else [*parts, *rest]

    def _put_off(self, same: Sequence[Request], error: Exception, waited_briefly: bool) -> bool:
        """Set requests that wait for a lock aside; return False if another try must confirm it."""
        if getattr(error, "sqlstate", None) == _CANCELED:
            if waited_briefly:
                raise error  # the lock timeout would have ended it earlier
            return False
        self._held.put_off(same[0].lock_key())
        self._aside += same
        self._waited[same[0].kind] += 1
        return True

    def _try(self, database: Connection, requests: Sequence[Request], act: Callable[[], T]) -> T:
        try:
            return act()
        except BaseException as error:
            # An error that is not the server's (memory, a log handler) may follow the commit.
            state = getattr(error, "sqlstate", None)
            if state is None or fault_of(error, database) is Fault.UNKNOWN:
                for request in requests:
                    request.uncertain = True
            raise

    def _record(
        self, database: Connection, events: Sequence[EventRequest], meanwhile: Callable[[], object]
    ) -> int:
        """Record the events; return how many are early for the server."""
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
        # The procedure counts new and known events; both are durable for their caller.
        ended = Counter(
            {
                Outcome.RECORDED: result.recorded,
                Outcome.DUPLICATE: result.duplicates,
                Outcome.CONFLICT: result.conflicts,
                Outcome.REJECTED: result.rejected,
            }
        )
        # Nothing below can fail: the events are answered, counted and removed, or none of these.
        self.answered += answers
        self.outcomes.update(ended)
        self._early += early
        self._events.pop()

    def _refuse(self, database: Connection, request: Request, error: Exception) -> None:
        """Store the request as a rejection; refuse it if even that cannot be written."""
        cause = cause_of(error)
        reason = f"{request.kind}: the database refuses it, {cause}; must be what a row can hold"
        answer = Answer(Outcome.REJECTED, reason)
        try:
            try:
                self._try(database, [request], lambda: database.reject(request.payload, reason))
            except Exception as second:
                if fault_of(second, database) is not Fault.POISON:
                    raise
                # JSON that the server cannot parse, such as too deep nesting: store it as text.
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
