"""The thread that connects and sends spooled requests, so that the writer never waits for it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import SpoolError
from .complaints import complaints
from .delivery import (
    MAX_BATCH,
    MAX_BATCH_BYTES,
    Delivery,
    Fault,
    cause_of,
    explained,
    fault_of,
    in_slices,
)
from .held_keys import HeldKeys
from .logs import SafeLogger
from .requests import Outcome
from .spool.spool import Spool, is_in_use
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from .connection import Connection
    from .requests import Request
    from .spool.folder import SpoolFolder

logger = SafeLogger(__name__)

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
_LOOK_SECONDS = 30.0  # between two searches for orphaned files and for early events that are due
_LONGEST_SILENCE = 1.0  # without progress of a flush, at the end of a process
_FLUSH_SECONDS = 30.0  # for one statement of a flush: no caller waits for it
_WRONG_CLOCK_SECONDS = 60.0
_MOST_UNCERTAIN = 10 * MAX_BATCH
_PROBE_LOCK_TIMEOUT = 250  # milliseconds, for a lock that all of a table's writers need
_LOOK_SECONDS_WHILE_HELD = 1.0
_SECONDS_TO_FIND_WHAT_WAITS = 1.0  # for a lock, in one batch of a flush


@dataclass(slots=True)
class Aside:
    """How many spooled requests cannot be sent now: two numbers of `TrackerStats`."""

    early: int = 0
    locked: int = 0
    untried: bool = False

    def add(self, delivery: Delivery) -> None:
        """Count the requests that a delivery has set aside."""
        self.early += len(delivery.early())
        self.locked += len(delivery.set_aside())
        self.untried = self.untried or delivery.has_untried()


class UncertainRequests:
    """Requests of unknown outcome that no spool could hold: answered False, retried from memory."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._kept: dict[int, Request] = {}
        self._last = 0

    def append(self, requests: Sequence[Request]) -> int:
        """Add the requests; return how many of the oldest were dropped to make room."""
        with self._changing:
            for request in requests:
                self._last += 1
                self._kept[self._last] = request
            dropped = list(self._kept)[: max(0, len(self._kept) - _MOST_UNCERTAIN)]
            for number in dropped:
                del self._kept[number]
        return len(dropped)

    def oldest(self, count: int, most_bytes: int, after: int = 0) -> list[tuple[int, Request]]:
        """Return the oldest requests; see `Spool.oldest`."""
        with self._changing:
            kept = [(number, one) for number, one in self._kept.items() if number > after]
        for first in in_slices([one for _, one in kept], count, most_bytes):
            return kept[: len(first)]
        return []

    def forget(self, numbers: Sequence[int], through: int = 0) -> None:  # noqa: ARG002
        """Remove these requests; see `Spool.forget`."""
        with self._changing:
            for number in numbers:
                self._kept.pop(number, None)

    def is_empty(self) -> bool:
        """Return whether no request waits."""
        return not self._kept

    def drop(self) -> int:
        """Remove all requests; return how many there were."""
        with self._changing:
            dropped, self._kept = len(self._kept), {}
        return dropped


class Recovery:
    """Connects if the writer has no connection, and sends the requests in spools and in memory.

    `is_down` is True from a known failure until a new connection works.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        folder: Callable[[], SpoolFolder],
        own_spool: Callable[[], Spool | None],
    ) -> None:
        self._connect = connect
        self._folder = folder
        self._own_spool = own_spool
        self._worker = Worker("token-tracking-recovery", self._step)
        self._changed = threading.Condition()
        self._fresh: Connection | None = None
        self._wanted = False
        self._uncertain = UncertainRequests()
        # This process's files that the writer no longer writes to.
        self._left: list[Spool] = []
        self._waits = False
        self._added = False
        self.held = HeldKeys()
        # What was set aside: as of the last pass, and since that pass began.
        self._aside = Aside()
        self._set_aside_since = Aside()
        self._spooled_since = False
        self._causes: set[str] | None = None
        self._look_at = 0.0
        # The identity of the database that answered last, and its transaction counter then.
        self._identity = ("", 0)
        self._pause = _FIRST_PAUSE
        self._stuck = False
        self._stopping = False
        self._flushed: Counter[Outcome] = Counter()
        self._told: set[str] = set()
        self.is_down = False

    def connection(self, deadline: float) -> Connection | None:
        """Return a new connection; None if there is none by the deadline or the server is down."""
        with self._changed:
            if self._fresh is None:
                self._wanted = True
                self._wake()
            while self._fresh is None and not self.is_down and not self._stopping:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            fresh, self._fresh = self._fresh, None
            return fresh

    def failed(self, error: BaseException | None = None) -> None:
        """Note that PostgreSQL cannot answer now: no call waits for it until it answers again."""
        with self._changed:
            self.is_down = True
            self._wanted = True
            is_news = self._is_news(error)
            self._wake()
        if is_news:
            cause = "" if error is None else f" ({explained(error)})"
            logger.warning(
                "the database cannot answer: events go to the spool until it can%s", cause
            )

    def _is_news(self, error: BaseException | None) -> bool:
        """Return whether to log an outage: when it begins, and when a setting explains it."""
        cause = "" if error is None else explained(error)
        begins = self._causes is None
        known = self._causes = self._causes or set()
        is_news = begins or (cause not in known and ": " in cause)
        known.add(cause)
        return is_news

    def spooled(self, left: Spool | None = None, delivery: Delivery | None = None) -> None:
        """Note that requests wait in the writer's spool, or in a file that it no longer writes to.

        `delivery` is the one whose pending requests these are, if known.
        """
        with self._changed:
            before = self._aside
            if left is not None:
                self._left.append(left)
            # Do not retry set-aside requests at once: another pass would only set them aside again.
            if delivery is None or delivery.has_untried() or not self._waits:
                self._added = True
            self._waits = self._spooled_since = True
            if delivery is not None:
                self._set_aside_since.add(delivery)
                self._aside = replace(before)
                self._aside.add(delivery)
            if self.held:
                self._look_at = min(self._look_at, time.monotonic() + _LOOK_SECONDS_WHILE_HELD)
            self._wake()
        self._say_aside(before)

    def set_aside(self) -> Aside:
        """Return how many waiting requests are set aside, as of the last pass."""
        with self._changed:
            return self._aside

    def _say_aside(self, before: Aside) -> None:
        now = self.set_aside()
        if now.locked and not before.locked:
            complaints.log(
                logger,
                logging.WARNING,
                "%d request(s) wait for a lock that another transaction holds: they stay in the "
                "spool, all others go on; see pg_stat_activity for sessions idle in transaction",
                now.locked,
            )
        elif before.locked and not now.locked:
            logger.info("no request waits for a lock any more")
        if now.early and not before.early:
            complaints.log(
                logger,
                logging.WARNING,
                "%d event(s) are more than 5 minutes ahead of the database's clock, or of what it "
                "was set to, or have fields that its older schema does not know (`token-tracking "
                "schema apply` upgrades it): they stay in the spool until then",
                now.early,
            )
        elif before.early and not now.early:
            logger.info("no event is early for the database any more")

    def keep_sending(self, requests: Sequence[Request]) -> None:
        """Resend requests that may be recorded and could not be spooled."""
        if dropped := self._uncertain.append(requests):
            logger.error("%d request(s) of unknown outcome are not sent again: too many", dropped)
        self.spooled()

    def count_flushed(self, outcomes: Counter[Outcome]) -> None:
        """Count the outcomes of requests that were sent after their call had returned."""
        with self._changed:
            self._flushed.update(outcomes)
            self._changed.notify_all()

    def flushed(self) -> Counter[Outcome]:
        """Return the outcomes of requests that were sent after their call had returned."""
        return self._flushed.copy()  # atomic, so without a lock

    def wait_until_flushed(self, deadline: float) -> None:
        """Wait while spooled requests are being sent and the flush makes progress."""

        def is_over() -> bool:
            return not self._waits or self._stuck or self.is_down or not self._worker.runs()

        with self._changed:
            moving = True
            while moving and not is_over() and time.monotonic() < deadline:
                before = self._flushed.total()
                moving = self._changed.wait_for(
                    lambda before=before: is_over() or self._flushed.total() != before,
                    _LONGEST_SILENCE,
                )

    def stop(self, timeout: float, left: Spool | None) -> None:
        """End the thread, waiting up to `timeout` seconds; spooled requests stay in the spool.

        The writer's spool is closed when the thread has ended, however long that takes.
        """
        with self._changed:
            if left is not None:
                self._left.append(left)
            self._stopping = True
            self._changed.notify_all()
            fresh, self._fresh = self._fresh, None
        if fresh is not None:
            fresh.close()
        self._worker.join(timeout)
        if not self._worker.runs():
            self._let_go()

    def _wake(self) -> None:
        if not self._stopping and not self._worker.start():
            self.is_down = True
        self._changed.notify_all()

    def _step(self) -> bool:
        failed = not self._reconnected()
        if not failed:
            try:
                self._send_waiting()
            except Exception as error:  # noqa: BLE001  # retried after any error
                logger.debug("not flushed: %s", cause_of(error))
                failed = True
        with self._changed:
            self._stuck = failed or self._waits
            if self._stuck:
                self._changed.notify_all()
                seconds = self._pause * random.uniform(0.5, 1)  # noqa: S311
                # Early events need no short pause: they are sent once their time has come.
                longest = _LONGEST_PAUSE if failed else _LOOK_SECONDS
                self._pause = min(longest, self._pause * 2)
                if not failed:
                    seconds = min(seconds, self._seconds_until_due())
            else:
                seconds = max(0, self._look_at - time.monotonic())
                self._pause = _FIRST_PAUSE
            self._changed.wait_for(
                lambda: self._stopping or (not failed and (self._wanted or self._added)), seconds
            )
            self._stuck = False
            if not self._stopping:
                return True
            self._changed.notify_all()
        self._let_go()
        return False

    def _seconds_until_due(self) -> float:
        """Return the seconds until the requests that wait for locks are retried."""
        if self._aside.untried:
            return _FIRST_PAUSE
        due = self.held.seconds_until_due()
        return _LOOK_SECONDS if due is None else max(_FIRST_PAUSE, due)

    def _reconnected(self) -> bool:
        if not self._wanted:
            return True
        try:
            database = self._probed()
        except Exception as error:  # noqa: BLE001  # retried after any error
            logger.debug("not connected: %s", cause_of(error))
            with self._changed:
                self.is_down = True
                is_news = self._is_news(error)
                self._changed.notify_all()
            if is_news:
                said = "; ".join([explained(error), *getattr(error, "__notes__", ())])
                logger.warning("the database cannot be reached: %s", said)
            return False
        with self._changed:
            if self._stopping:
                database.close()
                return True
            was_down, self.is_down = self.is_down, False
            self._causes = None
            self._wanted = False
            unused, self._fresh = self._fresh, database
            self._look_at = 0.0
            self._changed.notify_all()
        if unused is not None:
            unused.close()
        if was_down:
            logger.info("the database answers again")
        return True

    def _probed(self) -> Connection:
        """Return a connection that was tested with a batch; with a waiting one, if there is any."""
        database = self._connect()
        try:
            database.lock_timeout = _PROBE_LOCK_TIMEOUT
            database.record(b"[]")
            self._identify(database)
            if spool := self._own_spool():
                database.patience = _FLUSH_SECONDS
                try:
                    for outcomes in flush(spool, database, self.held):
                        self.count_flushed(outcomes)
                        break
                except SpoolError as error:
                    logger.debug("%s", error)
        except BaseException:
            database.abandon()
            raise
        if database.clock_ahead > _WRONG_CLOCK_SECONDS:
            self._tell(
                f"this machine's clock is {database.clock_ahead:.0f} s ahead of the database's: "
                "events more than 5 minutes ahead wait in the spool",
                "clock",
            )
        return database

    def _identify(self, database: Connection) -> None:
        """Note which database was reached, to find requests spooled for it under another DSN."""
        self._identity = database.identity()
        if self._identity[0]:
            self._folder().belongs_to(*self._identity)

    def _send_waiting(self) -> None:
        """Send all waiting requests, from memory and from every spool file.

        Raises:
            psycopg.Error: the database cannot take them now.

        """
        with self._changed:
            self._added = self._spooled_since = False
            self._set_aside_since = Aside()
        self.held.begin_pass()
        looks_at_all = time.monotonic() >= self._look_at
        aside = Aside()
        unreadable = False
        with ExitStack() as stack:
            database: Connection | None = None
            for spool in stack.enter_context(closing(self._waiting_sources())):
                if self._stopping:
                    return
                try:
                    if spool.is_empty():
                        continue
                    if database is None:
                        database = self._connect()
                        stack.callback(database.abandon)
                        database.patience = _FLUSH_SECONDS
                    self._flush(spool, database, aside)
                    if isinstance(spool, Spool) and (complaint := spool.complaint()):
                        self._tell(complaint)
                except SpoolError as error:
                    unreadable = unreadable or spool is self._own_spool()
                    self._tell(str(error))
        if looks_at_all:
            self.held.end_pass()
        own = self._own_spool()
        waits = unreadable or not self._uncertain.is_empty() or bool(self._left)
        if own is not None and not unreadable:
            if own.is_empty():
                own.shrink()
            else:
                waits = True
        with self._changed:
            self._waits = waits or self._spooled_since
            before, since = self._aside, self._set_aside_since
            self._aside = Aside(
                aside.early + since.early, aside.locked + since.locked, aside.untried
            )
            self._changed.notify_all()
        self._say_aside(before)

    def _waiting_sources(self) -> Generator[Spool | UncertainRequests]:
        yield self._uncertain
        if spool := self._own_spool():
            yield spool
        for spool in list(self._left):
            yield spool
            try:
                done = spool.is_empty()
            except SpoolError:
                done = True  # this process can read nothing more from it
            if done:
                self._left.remove(spool)
                spool.close()
        if time.monotonic() < self._look_at:
            return
        for folder in [self._folder(), *same_database(self._folder(), *self._identity)]:
            try:
                for orphan in Spool.adopt(folder):
                    with closing(orphan):
                        yield orphan
            except SpoolError as error:
                self._tell(str(error))
        for folder in self._folder().others():
            if not folder.note()[1]:
                self._tell(
                    f"what waits in {folder.path} is for a database that is not known by now: "
                    "see token-tracking spool status"
                )
        seconds = _LOOK_SECONDS_WHILE_HELD if self.held else _LOOK_SECONDS
        self._look_at = time.monotonic() + min(seconds, _LOOK_SECONDS)

    def _flush(self, spool: Spool | UncertainRequests, database: Connection, aside: Aside) -> None:
        total = 0
        try:
            for outcomes in flush(spool, database, self.held, aside):
                total += outcomes.total()
                self.count_flushed(outcomes)
                if self._stopping:
                    return
        finally:
            if total:
                logger.info("%d spooled request(s) are in PostgreSQL now", total)

    def _tell(self, message: str, about: str | None = None) -> None:
        """Log once a problem that a person should act on, however often it is found."""
        if (about or message) not in self._told:
            self._told.add(about or message)
            logger.error("%s", message)

    def _let_go(self) -> None:
        with self._changed:
            left, self._left = self._left, []
        for spool in left:
            spool.close()
        if dropped := self._uncertain.drop():
            logger.error("%d request(s) of unknown outcome are not sent again: the end", dropped)


def same_database(folder: SpoolFolder, identity: str, transaction: int) -> Iterator[SpoolFolder]:
    """Yield folders for the same database under another DSN that no running process uses."""
    for other in folder.of_same_database(identity, transaction):
        if not is_in_use(other):
            yield other


def flush(
    source: Spool | UncertainRequests,
    database: Connection,
    held: HeldKeys | None = None,
    aside: Aside | None = None,
) -> Iterator[Counter[Outcome]]:
    """Send waiting requests to PostgreSQL, the oldest batch first; yield each batch's outcomes.

    Requests of three kinds are skipped and stay: events ahead of the server's clock, requests that
    wait for another transaction's lock (their key is added to `held`), and requests that cannot be
    written even as a rejection. The first two kinds are counted in `aside`.

    Raises:
        psycopg.Error: requests not committed, or not known to be, are still waiting.
        SpoolError: the file cannot be read.

    """
    held = HeldKeys() if held is None else held
    last = 0
    whole = True
    while batch := source.oldest(MAX_BATCH, MAX_BATCH_BYTES, last):
        last = batch[-1][0]
        delivery = Delivery((request for _, request in batch), held, retries=True)
        _send(delivery, database)
        if aside is not None:
            aside.add(delivery)
        refused = [one for one, answer in delivery.answered if answer.outcome is Outcome.REFUSED]
        del delivery.outcomes[Outcome.REFUSED]  # it is retried
        stays = set(map(id, [*delivery.pending(), *refused]))
        whole = whole and not stays
        sent = [number for number, request in batch if id(request) not in stays]
        source.forget(sent, through=last if whole else 0)
        delivery.log_answers()
        yield delivery.outcomes


def _send(delivery: Delivery, database: Connection) -> None:
    until = time.monotonic() + _SECONDS_TO_FIND_WHAT_WAITS
    while True:
        try:
            delivery.send(database, until=until)
        except Exception as error:
            if fault_of(error, database) is not Fault.PASSING or delivery.attempts > 10:
                raise
            time.sleep(0.01 * delivery.attempts)
        else:
            return
