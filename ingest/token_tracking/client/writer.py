"""The tracker's writer thread: it takes all queued requests and commits them as one batch."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import logging
import os
import random
import sys
import threading
import time
import weakref
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from ..errors import SettingsError, SpoolError
from .complaints import complaints, where
from .delivery import (
    MAX_BATCH,
    MAX_BATCH_BYTES,
    Delivery,
    Fault,
    cause_of,
    fault_of,
    in_slices,
)
from .fallback import Fallback
from .logs import SafeLogger
from .recovery import Aside, Recovery
from .requests import Answer, Noted, Outcome, Request
from .runtimes import can_start_threads, is_ending
from .spool.spool import Spool
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .connection import Connection
    from .fallback import FallbackFunction
    from .settings import NamedFunction
    from .spool.folder import SpoolFolder

logger = SafeLogger(__name__)

# Share of the bounded wait that is reserved for the spool if PostgreSQL does not answer: a fifth,
# at least what creating its file takes on a busy machine, but never more than half.
_SPOOL_SHARE: Final = 0.2
_SPOOL_SECONDS: Final = 0.5
# If more requests wait, the database cannot keep up: they are spooled in one commit.
_MOST_WAITING: Final = 5 * MAX_BATCH
_MOST_BYTES_AT_ONCE: Final = 8 * 2**20
# With more bytes in memory, neither database nor disk keeps up: calls are refused at once.
_MOST_BYTES: Final = 64 * 2**20
# The same holds once a call has waited for this many times its bound: the disk hangs.
_STUCK_AFTER: Final = 2
_BYTES_BESIDE_PAYLOAD: Final = 1024
_EXIT_SECONDS: Final = 10.0
_RECOVERY_END_SECONDS: Final = 1.0
# Answers set in one turn: so few that the loop runs all their tasks in a few milliseconds.
_ANSWERS_AT_ONCE: Final = 16
_CLOSED: Final = Answer(Outcome.REFUSED, "the tracker is closed")
_FULL: Final = Answer(Outcome.REFUSED, "too much waits: neither database nor disk keeps up")
_NO_THREAD: Final = Answer(Outcome.REFUSED, "the system has no thread for it")
LATE: Final = Answer(Outcome.REFUSED, "no answer within the bounded wait, it is still sent")


class Writer:
    """Writes requests on its own thread; `submit` never blocks.

    A request leaves the queue when its outcome is known: committed, refused, or spooled to disk. A
    watch thread, which does nothing else, returns False to calls that exceed the bounded wait: so
    whatever blocks the writer, such as a disk or a log handler that hangs, blocks no caller.

    These threads never wait for a lock that callers hold, nor callers for one of theirs: so a
    signal handler that makes a call gets its answer even if it interrupts another call.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        max_wait: float,
        spool_folder: Callable[[], SpoolFolder],
        spool_max_bytes: int,
        fallback: FallbackFunction | NamedFunction | None = None,
    ) -> None:
        self._connect = connect
        self._max_wait = max_wait
        for_spool = max(_SPOOL_SHARE * max_wait, min(_SPOOL_SECONDS, 0.5 * max_wait))
        self._database_wait = max_wait - for_spool
        self._find_spool_folder = spool_folder
        self._known_folder: SpoolFolder | None = None
        self._spool_max_bytes = spool_max_bytes
        self._fallback_function = fallback
        # Whether a request must carry its call's original arguments.
        self.keeps_originals: Final = fallback is not None
        self._set_up()
        _writers.add(self)

    def _set_up(self) -> None:
        # Callers append; only the writer's thread removes.
        self._queue: deque[Request] = deque()
        self._bytes_in = 0
        self._bytes_out = 0
        self._submitting = threading.RLock()
        self._refused: Counter[Outcome] = Counter()
        self._noted: Counter[Noted] = Counter()
        self._worker = Worker("token-tracking-writer", self._step)
        self._runs = self._worker.runs
        self._ring = self._worker.ring
        self._tried = threading.Event()
        self._closing = False
        self._ended = False
        self._last: LastWriter | None = None
        self._dropped = False
        self._close_by = 0.0
        self._database: Connection | None = None
        # Committed but still in the queue: settled while the server works on the next batch.
        self._committed: tuple[list[Request], Delivery] | None = None
        self._spool: Spool | None = None
        self._spool_fails = False
        self._recovery = Recovery(self._connect, self._spool_folder, lambda: self._spool)
        # Held by the tracker's own threads only, to decide a call's answer and to count it.
        self._settling = threading.Lock()
        self._outcomes: Counter[Outcome] = Counter()
        self._late: set[Request] = set()
        self._watch = Worker("token-tracking-watch", self._answer_late, writes_lines=False)
        self._watching = True
        self._fallback = (
            Fallback(self._fallback_function, self._count, deliver_answers)
            if self._fallback_function
            else None
        )

    def start(self) -> None:
        """Start the thread and wait until it has tried to connect, at most for the bounded wait."""
        with self._submitting:
            if self._closing or not self._start_threads():
                return
        self._tried.wait(self._max_wait)

    def submit(self, request: Request) -> Answer | None:
        """Queue the request and return None, or return its answer if it cannot be queued."""
        size = len(request.payload) + _BYTES_BESIDE_PAYLOAD
        request.since = now = time.monotonic()
        with self._submitting:
            queue = self._queue
            if self._closing:
                refused = _CLOSED
            elif self._bytes_in - self._bytes_out + size > _MOST_BYTES or (
                queue and now - queue[0].since > _STUCK_AFTER * self._max_wait
            ):
                refused = _FULL
            elif (self._runs() and can_start_threads()) or self._start_threads():
                self._bytes_in += size
                queue.append(request)
                self._ring()
                return None
            else:
                refused = _NO_THREAD
        if (refused is _CLOSED and self._ended) or (refused is _NO_THREAD and is_ending()):
            return self._write_at_end(request)
        if refused is _CLOSED:
            return refused
        # The request was never sent, so the fallback cannot count it twice.
        return None if self._fallback is not None and self._fallback.call(request) else refused

    def count(self, outcome: Outcome) -> None:
        """Count a call that ended before it was queued."""
        with self._submitting:
            self._refused[outcome] += 1

    def note(self, what: Noted) -> None:
        """Count something about a call beside its outcome."""
        with self._submitting:
            self._noted[what] += 1

    def noted(self) -> Counter[Noted]:
        """Return the numbers of what was noted."""
        with self._submitting:
            return self._noted.copy()

    def outcomes(self) -> Counter[Outcome]:
        """Return the number of calls by outcome, not counting what flushes did later."""
        with self._submitting:
            total = self._outcomes.copy()
            total.update(self._refused)
            return total

    def flushed(self) -> Counter[Outcome]:
        """Return the outcomes of requests sent, from spool or memory, after their call returned."""
        return self._recovery.flushed()

    def set_aside(self) -> Aside:
        """Return how many spooled requests wait for a clock or for a lock."""
        return self._recovery.set_aside()

    def waiting(self) -> int:
        """Return how many requests wait for an answer."""
        fallback = 0 if self._fallback is None else self._fallback.waiting()
        return len(self._queue) - len(self._late) + fallback

    def close(self, timeout: float) -> bool:
        """Write or spool the queue and stop; return False if `timeout` seconds were not enough."""
        until = time.monotonic() + timeout
        with self._submitting:
            self._close_by = until
            self._closing = True
        self._ring()
        if not self._worker.join(timeout):
            return False
        # If the database is up, send what had to be spooled meanwhile.
        self._recovery.wait_until_flushed(until)
        spool, self._spool = self._spool, None
        left = max(0.1, until - time.monotonic())
        # Everything is durable by now: do not wait longer, for a dead host perhaps.
        self._recovery.stop(min(left, _RECOVERY_END_SECONDS), spool)
        has_ended = self._fallback is None or self._fallback.close(
            max(0.1, until - time.monotonic())
        )
        if self._fallback is not None and not has_ended:
            logger.error("the fallback is still running: calls that wait for it are answered False")
            self._fallback.answer_late(float("inf"))  # the watch thread stops next
        self._watching = False
        self._watch.ring()
        self._watch.join(max(0.1, until - time.monotonic()))
        return has_ended

    def end(self, timeout: float) -> bool:
        """Close at the end of the process: `LastWriter` writes the calls that come later."""
        with self._submitting:
            self._ended = self._ended or not self._closing
        return self.close(timeout)

    def _write_at_end(self, request: Request) -> Answer:
        with self._submitting:
            if self._last is None:
                self._last = LastWriter(
                    self._connect,
                    lambda: Spool.create(self._spool_folder(), self._spool_max_bytes),
                    self._max_wait,
                )
        return self._last.write(request)

    def drop(self) -> None:
        """Have the writer's thread close everything, without waiting for it."""
        with self._submitting:
            self._dropped = True
            self._close_by = time.monotonic() + _EXIT_SECONDS
            self._closing = True
        self._ring()

    def restart_after_fork(self) -> None:
        """Start with a new state and leave threads, connection, spool and queue to the parent."""
        # Never freed: closing the connection here would close the parent's.
        for inherited in (self._database, self._recovery):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
        closing, ended = self._closing, self._ended
        self._set_up()
        self._closing, self._ended = closing, ended

    def _spool_folder(self) -> SpoolFolder:
        try:
            self._known_folder = self._find_spool_folder()
        except SettingsError as error:  # a database without a name has no folder
            raise SpoolError(str(error)) from error
        except ImportError:  # past the exit handlers nothing can be imported
            if self._known_folder is None:
                raise
        return self._known_folder

    def _start_threads(self) -> bool:
        if not (self._watch.start() and self._worker.start()):
            return False
        if self._fallback is not None:
            self._fallback.look_for_function()
        _close_at_end_of_child()
        return True

    def _step(self) -> bool:
        if not self._tried.is_set():
            try:
                deadline = time.monotonic() + self._database_wait
                self._database = self._recovery.connection(deadline)
            finally:
                self._tried.set()
        if batch := self._next_batch():
            self._write(batch)
        elif self._committed is not None:
            self._settle_committed()
        elif self._closing:
            if self._database is not None:
                self._database.close()
            if self._dropped:
                self.close(_EXIT_SECONDS)
            return False
        else:
            self._worker.wait()
        return True

    def _next_batch(self) -> list[Request]:
        # Not taken out: requests leave the queue when their outcome is known. `copy` is atomic, so
        # callers may append meanwhile.
        waiting = self._queue.copy()
        for _ in self._committed[0] if self._committed else ():
            waiting.popleft()
        count, size = MAX_BATCH, MAX_BATCH_BYTES
        if not self._spool_fails and (self._recovery.is_down or len(waiting) > _MOST_WAITING):
            count, size = len(waiting), _MOST_BYTES_AT_ONCE
        return next(in_slices(waiting, count, size)) if waiting else []

    def _write(self, batch: list[Request]) -> None:
        delivery = Delivery(batch, self._recovery.held)
        cause: str | None = None
        try:
            if len(batch) <= MAX_BATCH:
                self._send(delivery, batch[0].since + self._database_wait)
            self._settle_committed()
            pending = delivery.pending()
            if not pending:
                self._committed = batch, delivery
                return
            cause = self._spool_up(pending, delivery)
            if cause is None:
                delivery.take_as_kept()
            elif len(batch) > MAX_BATCH:
                return  # retried in smaller parts
        except Exception as error:  # noqa: BLE001  # the callers get an answer
            logger.error("%s in the writer:\n%s", type(error).__name__, where(error))
            cause = "a fault in token_tracking, see the log"
        self._settle_committed()
        delivery.log_answers()
        self._settle(batch, delivery, cause)

    def _settle_committed(self) -> None:
        if self._committed is not None:
            batch, delivery = self._committed
            # Log while they are in the queue, so that their wait stays bounded if a handler hangs.
            delivery.log_answers()
            self._settle(batch, delivery)

    def _settle(self, batch: list[Request], delivery: Delivery, cause: str | None = None) -> None:
        """Remove the batch from the queue, count and answer it; `cause` is why requests failed."""
        with self._settling:
            late = self._late.intersection(batch) if self._late else self._late
            others = self._late - late
            for _ in batch:
                self._queue.popleft()
            self._committed, self._late = None, others
        self._bytes_out += sum([len(request.payload) for request in batch])
        self._bytes_out += len(batch) * _BYTES_BESIDE_PAYLOAD
        ended = delivery.outcomes
        answered = delivery.answered
        pending = delivery.pending()
        refused: list[Request] = []
        if pending:
            # No fallback for a request that may be committed (it would count twice) or whose call
            # was already answered False.
            refused = [
                request
                for request in pending
                if self._fallback is None
                or request.uncertain
                or request in late
                or not self._fallback.call(request)
            ]
            answer = Answer(Outcome.REFUSED, cause)
            answered = answered + [(request, answer) for request in refused]
            ended[Outcome.REFUSED] += len(refused)
        if late:
            self._count_as_flushed(
                ended, [answer for request, answer in answered if request in late]
            )
        with self._settling:
            self._outcomes.update(ended)
        deliver_answers(answered)
        if pending:
            if uncertain := [request for request in pending if request.uncertain]:
                self._recovery.keep_sending(uncertain)
            if refused:
                complaints.log(
                    logger,
                    logging.ERROR,
                    "%d request(s) not known to be durable: %s",
                    len(refused),
                    cause,
                )

    def _count_as_flushed(self, ended: Counter[Outcome], answers: list[Answer]) -> None:
        """Recount calls that were already answered False as flushed outcomes, not call outcomes."""
        later: Counter[Outcome] = Counter()
        for answer in answers:
            # A batch reports how many of its events were duplicates, but not which ones.
            outcome = answer.outcome if ended[answer.outcome] else Outcome.DUPLICATE
            ended[outcome] -= 1
            later[outcome] += 1
        del later[Outcome.SPOOLED], later[Outcome.REFUSED]
        self._recovery.count_flushed(later)

    def _answer_late(self) -> bool:
        """Answer False to calls whose bounded wait is over; sleep until the next one's is."""
        due = time.monotonic() - self._max_wait
        waits_since = due + self._max_wait
        late: list[Request] = []
        with self._settling:
            for request in self._queue.copy():
                if request.since > due:
                    waits_since = request.since
                    break
                if request not in self._late:
                    late.append(request)
            if late:
                self._late = self._late.union(late)
                self._outcomes[Outcome.REFUSED] += len(late)
        deliver_answers([(request, LATE) for request in late])
        if self._fallback is not None:
            waits_since = min(waits_since, self._fallback.answer_late(due))
        if self._queue and self._worker.start():
            self._ring()
        self._watch.wait(max(0.001, waits_since + self._max_wait - time.monotonic()))
        return self._watching

    def _count(self, outcome: Outcome) -> None:
        with self._settling:
            self._outcomes[outcome] += 1

    def _send(self, delivery: Delivery, deadline: float) -> None:
        """Send until all is committed, the deadline has passed, or the database is down."""
        while True:
            if self._closing:
                deadline = min(deadline, self._close_by - 0.1 * self._max_wait)
            if self._database is None:
                self._settle_committed()
                self._database = self._recovery.connection(deadline)
                if self._database is None:
                    if not self._recovery.is_down:
                        self._recovery.failed()
                    return
            try:
                self._database.patience = max(0.01, deadline - time.monotonic())
                delivery.send(
                    self._database, lambda until=deadline: self._use_time(until), deadline
                )
            except Exception as error:  # noqa: BLE001  # callers get an answer after any error
                fault = fault_of(error, self._database)
                self._settle_committed()
                logger.debug(
                    "attempt %d failed: %s, %s", delivery.attempts, cause_of(error), fault.value
                )
                if fault is not Fault.PASSING:
                    self._database.close()
                    self._database = None
                # A lock wait is raised only if no other request gets through.
                if fault in {Fault.OUTAGE, Fault.WAITING}:
                    self._recovery.failed(error)
                    return
                pause = min(0.2, 0.005 * 2**delivery.attempts) * random.uniform(0.5, 1)  # noqa: S311
                # An attempt that the deadline cuts off would only make the outcome uncertain.
                if time.monotonic() + pause >= deadline:
                    if fault is Fault.UNKNOWN:
                        self._recovery.failed(error)
                    return
                time.sleep(pause)
            else:
                return

    def _use_time(self, deadline: float) -> None:
        """Settle the previous batch while the server works on this one."""
        self._settle_committed()
        if self._database is not None:
            self._database.patience = max(0.01, deadline - time.monotonic())

    def _spool_up(self, requests: list[Request], delivery: Delivery) -> str | None:
        """Spool the requests; return None, or the reason if they cannot be spooled."""
        cause = ""
        for _ in range(2):
            try:
                if self._spool is None:
                    self._spool = Spool.create(self._spool_folder(), self._spool_max_bytes)
                self._spool.append(requests)
            except SpoolError as error:
                cause = str(error)
                if error.uncertain:
                    for request in requests:
                        request.uncertain = True
                if not self._replace_spool(error):
                    break
            else:
                self._spool_fails = False
                self._recovery.held.keep(one.lock_key() for one in delivery.set_aside())
                self._recovery.spooled(delivery=delivery)
                logger.debug("spooled %d request(s)", len(requests))
                return None
        if not self._spool_fails:
            logger.error("%s", cause)
        self._spool_fails = True
        if delivery.set_aside():
            self._recovery.spooled()  # a pass must find that none of their keys waits
        return cause

    def _replace_spool(self, error: SpoolError) -> bool:
        """Stop using a file that is broken, gone, or full and drained; return False otherwise."""
        spool = self._spool
        if spool is None:
            return False
        try:
            if error.full and not spool.is_empty():
                return False
            self._spool = None
            if spool.is_gone():
                # This process may be the only one that can still read it.
                logger.error("%s: what waits in it goes to a new one", error)
                self._spool = Spool.create(self._spool_folder(), self._spool_max_bytes)
                spool.move_to(self._spool)
        except SpoolError as second:
            logger.error("%s", second)
        self._recovery.spooled(left=spool)
        return True


class LastWriter:
    """Writes single requests while the process exits, after its writer has stopped.

    Uses a thread, for which it waits a bounded time, while threads can be started; after that, the
    caller's own thread.
    """

    def __init__(
        self, connect: Callable[[], Connection], make_spool: Callable[[], Spool], max_wait: float
    ) -> None:
        self._connect = connect
        self._make_spool = make_spool
        self._max_wait = max_wait
        self._writing = threading.Lock()
        self._database: Connection | None = None
        self._is_down = False
        # Never closed: when the process ends, its file is an orphan that others adopt.
        self._spool: Spool | None = None

    def write(self, request: Request) -> Answer:
        """Commit or spool it, and return which; on a thread, within twice the bounded wait."""
        if not self._writing.acquire(timeout=self._max_wait):
            return _FULL
        answers: list[Answer] = []

        def step() -> bool:
            try:
                answers.append(self._written(request))
            except BaseException as error:  # noqa: BLE001  # this late in the exit, anything may be torn down
                cause = str(error) if isinstance(error, SpoolError) else type(error).__name__
                reason = f"the process ends, and it cannot be written: {cause}"
                answers.append(Answer(Outcome.REFUSED, reason))
            self._writing.release()
            return False

        worker = Worker("token-tracking-last", step)
        if not worker.start():
            step()
        elif not worker.join(self._max_wait):
            return LATE
        return answers[0]

    def _written(self, request: Request) -> Answer:
        delivery = Delivery([request])
        self._send(delivery)
        if delivery.pending():
            if self._spool is None:
                self._spool = self._make_spool()
            self._spool.append([request])
            delivery.take_as_kept()
        delivery.log_answers()
        return delivery.answered[0][1]

    def _send(self, delivery: Delivery) -> None:
        if self._is_down:
            return
        try:
            if self._database is None:
                self._database = self._connect()
            self._database.patience = self._max_wait / 2
            delivery.send(self._database)
        except Exception as error:  # noqa: BLE001  # spool it, and all later ones
            logger.debug("not sent at the end: %s", cause_of(error))
            self._is_down = True


def deliver_answers(answered: Sequence[tuple[Request, Answer]]) -> None:
    """Deliver the answers, with one wake-up for each event loop, however many tasks wait there."""
    try:
        _deliver(answered)
    except MemoryError:
        for one in answered:  # needs less memory
            _deliver([one])


def _deliver(answered: Sequence[tuple[Request, Answer]]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Answer], Answer]]] = {}
    latest = None
    answers: list[tuple[asyncio.Future[Answer], Answer]] = []
    for request, answer in answered:
        future = request.future
        if isinstance(future, asyncio.Future):
            loop = future.get_loop()
            if loop is not latest:
                latest, answers = loop, by_loop.setdefault(loop, [])
            answers.append((future, answer))
        elif future is not None and not future.done():
            future.set_result(answer)
    for loop, answers in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set_results, answers)
        except RuntimeError:
            logger.debug("the event loop of %d call(s) closed before their answer", len(answers))


def _set_results(answers: Sequence[tuple[asyncio.Future[Answer], Answer]], start: int = 0) -> None:
    end = start + _ANSWERS_AT_ONCE
    for future, answer in answers[start:end]:
        if not future.done():  # done if its task was cancelled
            future.set_result(answer)
    if end < len(answers):
        # Deliver the rest after the tasks that these wake, and after the loop's other work.
        answers[end][0].get_loop().call_soon(_set_results, answers, end)


_writers: Final[weakref.WeakSet[Writer]] = weakref.WeakSet()


def _close_all() -> None:
    until = time.monotonic() + _EXIT_SECONDS
    for writer in list(_writers):
        if not writer.end(max(0.1, until - time.monotonic())):
            logger.error("%d event(s) still wait at exit", writer.waiting())


_closes_at_end_of: int | None = None


def _close_at_end_of_child() -> None:
    """Close all writers when a `multiprocessing` child ends, which runs no exit handlers."""
    global _closes_at_end_of  # noqa: PLW0603
    process = sys.modules.get("multiprocessing.process")
    if (
        process is not None
        and process.parent_process() is not None
        and _closes_at_end_of != os.getpid()
    ):
        from multiprocessing.util import Finalize

        _closes_at_end_of = os.getpid()
        Finalize(None, _close_all, exitpriority=10)


def _after_fork_in_child() -> None:
    for writer in list(_writers):
        writer.restart_after_fork()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
