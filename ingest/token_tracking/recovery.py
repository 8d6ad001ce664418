"""The thread that makes connections and brings in what was spooled; the writer never waits."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from .delivery import (
    MAX_BATCH,
    MAX_BATCH_BYTES,
    Delivery,
    Fault,
    cause_of,
    fault_of,
    in_slices,
)
from .errors import SpoolError
from .logs import SafeLogger
from .requests import Outcome
from .spool import Spool
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from pathlib import Path

    from .database import Database
    from .requests import Request

logger = SafeLogger(__name__)

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
_LOOK_SECONDS = 30.0  # between two looks for what others left, or for early events whose time came
_LONGEST_SILENCE = 1.0  # of a flush, at the end of a process
_FLUSH_SECONDS = 30.0  # nobody waits for a flush
_WRONG_CLOCK_SECONDS = 60.0
_MOST_IN_LIMBO = 10 * MAX_BATCH


class Limbo:
    """What may be recorded and could be kept nowhere: told False, and still sent, out of memory."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._kept: dict[int, Request] = {}
        self._last = 0

    def append(self, requests: Sequence[Request]) -> int:
        """Add the requests; return how many of the oldest were dropped for them."""
        with self._changing:
            for request in requests:
                self._last += 1
                self._kept[self._last] = request
            dropped = list(self._kept)[: max(0, len(self._kept) - _MOST_IN_LIMBO)]
            for number in dropped:
                del self._kept[number]
        return len(dropped)

    def oldest(self, count: int, most_bytes: int, after: int = 0) -> list[tuple[int, Request]]:
        """Do as `Spool.oldest`."""
        with self._changing:
            kept = [(number, one) for number, one in self._kept.items() if number > after]
        for first in in_slices([one for _, one in kept], count, most_bytes):
            return kept[: len(first)]
        return []

    def forget(self, numbers: Sequence[int], through: int = 0) -> None:  # noqa: ARG002
        """Do as `Spool.forget`."""
        with self._changing:
            for number in numbers:
                self._kept.pop(number, None)

    def is_empty(self) -> bool:
        """Say whether nothing waits."""
        return not self._kept

    def drop(self) -> int:
        """Forget all; return how many that were."""
        with self._changing:
            dropped, self._kept = len(self._kept), {}
        return dropped


class Recovery:
    """Connects where the writer has no connection, and brings in what waits in spools and limbo.

    `is_down` is True from a known failure until a connection was made that works.
    """

    def __init__(
        self,
        connect: Callable[[], Database],
        folder: Callable[[], Path],
        own_spool: Callable[[], Spool | None],
    ) -> None:
        self._connect = connect
        self._folder = folder
        self._own_spool = own_spool
        self._worker = Worker("token-tracking-recovery", self._step)
        self._changed = threading.Condition()
        self._fresh: Database | None = None
        self._wanted = False
        self._limbo = Limbo()
        # Files of ours that the writer does not write to any more.
        self._left: list[Spool] = []
        self._waits = False
        self._added = False
        self._look_at = 0.0
        self._pause = _FIRST_PAUSE
        self._stuck = False
        self._stopping = False
        self._flushed: Counter[Outcome] = Counter()
        self._told: set[str] = set()
        self.is_down = False

    def connection(self, deadline: float) -> Database | None:
        """Return a new connection; None where there is none by the deadline or it is known so."""
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

    def failed(self) -> None:
        """Take note that PostgreSQL cannot answer now: nobody waits for it until it can."""
        with self._changed:
            known, self.is_down = self.is_down, True
            self._wanted = True
            self._wake()
        if not known:
            logger.warning("the database cannot answer: events go to the spool until it can")

    def spooled(self, left: Spool | None = None) -> None:
        """Take note that something waits in the writer's spool, or in a file that it has left."""
        with self._changed:
            if left is not None:
                self._left.append(left)
            self._waits = self._added = True
            self._wake()

    def keep_sending(self, requests: Sequence[Request]) -> None:
        """Send again what may be recorded and could not be spooled."""
        if dropped := self._limbo.append(requests):
            logger.error("%d request(s) of unknown outcome are not sent again: too many", dropped)
        self.spooled()

    def count_flushed(self, outcomes: Counter[Outcome]) -> None:
        """Count what became of requests after their call had its answer."""
        with self._changed:
            self._flushed.update(outcomes)
            self._changed.notify_all()

    def flushed(self) -> Counter[Outcome]:
        """Return what became of requests after their call had its answer."""
        with self._changed:
            return self._flushed.copy()

    def wait_until_flushed(self, deadline: float) -> None:
        """Wait while what waits is being brought in, and something comes of it."""

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
        """End the thread, waiting for `timeout` seconds; what waits in the spool stays there.

        The writer's spool is given up when the thread has ended, however long that takes.
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
                self._bring_in()
            except Exception as error:  # noqa: BLE001  # whatever it is, it is tried again
                logger.debug("not flushed: %s", cause_of(error))
                failed = True
        with self._changed:
            self._stuck = failed or self._waits
            if self._stuck:
                self._changed.notify_all()
                seconds = self._pause * random.uniform(0.5, 1)  # noqa: S311
                # What is too early for the server comes in when its time has come.
                longest = _LONGEST_PAUSE if failed else _LOOK_SECONDS
                self._pause = min(longest, self._pause * 2)
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

    def _reconnected(self) -> bool:
        if not self._wanted:
            return True
        try:
            database = self._probed()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is tried again
            logger.debug("not connected: %s", cause_of(error))
            with self._changed:
                known, self.is_down = self.is_down, True
                self._changed.notify_all()
            if not known:
                logger.warning("the database cannot be reached: %s", cause_of(error))
            return False
        with self._changed:
            if self._stopping:
                database.close()
                return True
            was_down, self.is_down = self.is_down, False
            self._wanted = False
            unused, self._fresh = self._fresh, database
            self._look_at = 0.0
            self._changed.notify_all()
        if unused is not None:
            unused.close()
        if was_down:
            logger.info("the database answers again")
        return True

    def _probed(self) -> Database:
        """Return a connection that takes events: also those that wait, where some do."""
        database = self._connect()
        try:
            database.record(b"[]")
            if spool := self._own_spool():
                database.patience = _FLUSH_SECONDS
                try:
                    for outcomes in flush(spool, database):
                        self.count_flushed(outcomes)
                        break
                except SpoolError as error:
                    logger.debug("%s", error)
        except BaseException:
            database.close()
            raise
        if database.clock_ahead > _WRONG_CLOCK_SECONDS:
            self._tell(
                f"this machine's clock is {database.clock_ahead:.0f} s ahead of the database's: "
                "events more than 5 minutes ahead wait in the spool",
                "clock",
            )
        return database

    def _bring_in(self) -> None:
        """Send what waits, in whatever it waits.

        Raises:
            psycopg.Error: the database cannot take it now.

        """
        with self._changed:
            self._added = False
        unreadable = False
        with ExitStack() as stack:
            database: Database | None = None
            for spool in stack.enter_context(closing(self._what_waits())):
                if self._stopping:
                    return
                try:
                    if spool.is_empty():
                        continue
                    if database is None:
                        database = stack.enter_context(closing(self._connect()))
                        database.patience = _FLUSH_SECONDS
                    self._flush(spool, database)
                    if isinstance(spool, Spool) and (complaint := spool.complaint()):
                        self._tell(complaint)
                except SpoolError as error:
                    unreadable = unreadable or spool is self._own_spool()
                    self._tell(str(error))
        own = self._own_spool()
        waits = unreadable or not self._limbo.is_empty() or bool(self._left)
        if own is not None and not unreadable:
            if own.is_empty():
                own.shrink()
            else:
                waits = True
        with self._changed:
            self._waits = waits or self._added
            self._changed.notify_all()

    def _what_waits(self) -> Generator[Spool | Limbo]:
        yield self._limbo
        if spool := self._own_spool():
            yield spool
        for spool in list(self._left):
            yield spool
            try:
                done = spool.is_empty()
            except SpoolError:
                done = True  # nothing more comes out of it here
            if done:
                self._left.remove(spool)
                spool.close()
        if time.monotonic() < self._look_at:
            return
        try:
            for orphan in Spool.adopt(self._folder()):
                with closing(orphan):
                    yield orphan
        except SpoolError as error:
            self._tell(str(error))
        self._look_at = time.monotonic() + _LOOK_SECONDS

    def _flush(self, spool: Spool | Limbo, database: Database) -> None:
        total = 0
        try:
            for outcomes in flush(spool, database):
                total += outcomes.total()
                self.count_flushed(outcomes)
                if self._stopping:
                    return
        finally:
            if total:
                logger.info("%d spooled request(s) are in PostgreSQL now", total)

    def _tell(self, message: str, about: str | None = None) -> None:
        """Log what a person should act on, once, however often it is found."""
        if (about or message) not in self._told:
            self._told.add(about or message)
            logger.error("%s", message)

    def _let_go(self) -> None:
        with self._changed:
            left, self._left = self._left, []
        for spool in left:
            spool.close()
        if dropped := self._limbo.drop():
            logger.error("%d request(s) of unknown outcome are not sent again: the end", dropped)


def flush(source: Spool | Limbo, database: Database) -> Iterator[Counter[Outcome]]:
    """Bring what waits into PostgreSQL, the oldest batch first; yield what became of each batch.

    What is ahead of the server's clock is passed by, and stays; so does what cannot be written, not
    even as a rejection.

    Raises:
        psycopg.Error: what was not committed, or is not known to be, still waits.
        SpoolError: the file cannot be read.

    """
    last = 0
    whole = True
    while batch := source.oldest(MAX_BATCH, MAX_BATCH_BYTES, last):
        last = batch[-1][0]
        delivery = Delivery(request for _, request in batch)
        _send(delivery, database)
        refused = [one for one, answer in delivery.answered if answer.outcome is Outcome.REFUSED]
        del delivery.outcomes[Outcome.REFUSED]  # it is tried again
        stays = set(map(id, [*delivery.pending(), *refused]))
        whole = whole and not stays
        sent = [number for number, request in batch if id(request) not in stays]
        source.forget(sent, through=last if whole else 0)
        delivery.log_answers()
        yield delivery.outcomes


def _send(delivery: Delivery, database: Database) -> None:
    while True:
        try:
            delivery.send(database)
        except Exception as error:
            if fault_of(error, database) is not Fault.PASSING or delivery.attempts > 10:
                raise
            time.sleep(0.01 * delivery.attempts)
        else:
            return
