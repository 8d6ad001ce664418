"""The loop of a refresh: look for changes, build if there are any, report, wait."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from ..errors import BuildError, WarehouseError
from ..target import Target
from .resident import Scope
from .totals import Arrivals, Watch

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from .resident import ResidentDbt
    from .totals import Totals

_LONGEST_PAUSE = 30.0
_NO_SCHEMA = (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedTable)
# A snapshot that sees no transaction.
_BEFORE_ALL = "1:1:"


@dataclass(frozen=True)
class Built:
    """A successful build: the rows that it added, and its duration.

    `lag` is the age of the oldest added row at the time when the totals were ready: no recorded
    call waited longer for its totals. None if no row was added, or all were counted for the first
    time.
    """

    run_number: int | None
    scope: Scope
    arrivals: Arrivals | None
    lag: float | None
    seconds: float


@dataclass(frozen=True)
class Failed:
    """A failed turn, the `attempt`th in a row; the next one follows after `retry` seconds.

    `message` is None if it equals the previous attempt's. `waiting` counts what the totals lack, if
    the database can be asked.
    """

    message: str | None
    nodes: tuple[str, ...]
    attempt: int
    retry: float
    waiting: Arrivals | None


@dataclass(frozen=True)
class Recovered:
    """The first successful turn after failed ones."""

    attempts: int
    seconds: float


Told = Built | Failed | Recovered


class Refresh:
    """Keeps the totals no older than `every` seconds plus the duration of a build."""

    def __init__(
        self, dbt: ResidentDbt, every: float, tell: Callable[[Told], None], stop: threading.Event
    ) -> None:
        self._dbt = dbt
        self._every = every
        self._tell = tell
        self._stop = stop
        self._watch: Watch | None = None
        self._inputs = ""
        self._due = True  # the first turn builds: files, variables or the seed may have changed
        self._seed_is_due = True
        self._has_built = False
        self._attempts = 0
        self._message: str | None = None
        self._failing_since = 0.0

    def run(self) -> None:
        """Take turns until `stop` is set; report a failed turn and retry it later.

        Raises:
            WarehouseError: the first turn failed for a reason that a retry cannot fix.

        """
        try:
            while not self._stop.is_set():
                started = time.monotonic()
                try:
                    self.turn()
                except (psycopg.Error, WarehouseError) as error:
                    if not self._has_built and not _can_pass(error):
                        raise WarehouseError(_sentence(error)) from error
                    pause = self._failed(error)
                else:
                    self._succeeded()
                    pause = started + self._every - time.monotonic()
                self._stop.wait(max(0.0, pause))
        finally:
            self.close()

    def once(self) -> None:
        """Take one turn, which always builds.

        Raises:
            WarehouseError: the build failed.

        """
        try:
            self.turn()
        except (psycopg.Error, WarehouseError) as error:
            message = f"{_sentence(error)}{_more(error)}"
            raise WarehouseError(message) from error
        finally:
            self.close()

    def turn(self) -> Built | None:
        """Build if something has changed; return None if nothing has.

        Raises:
            BuildError: a node failed.
            WarehouseError: the project cannot be read.
            psycopg.Error: the database cannot be queried.

        """
        if self._dbt.read():
            self.close()
            self._due = self._seed_is_due = True
        watch = self._watch = self._watch or Watch(self._dbt.schema, self._dbt.relations)
        before = watch.totals()
        # Also if nothing was ever built: this query fails if the raw schema is missing.
        is_waiting = watch.is_waiting(
            before.snapshot or _BEFORE_ALL, before.price_snapshot or _BEFORE_ALL
        )
        if before.is_behind or before.inputs != self._inputs:
            self._due = True
        if not (self._due or is_waiting):
            return None
        scope = Scope.PROJECT if self._seed_is_due else Scope.MODELS if self._due else Scope.ROLLUPS
        started = time.monotonic()
        self._dbt.build(scope)
        seconds = time.monotonic() - started
        after = watch.totals()
        self._inputs = after.inputs
        self._due = self._seed_is_due = False
        self._has_built = True
        built = _built(watch, before, after, scope, seconds)
        self._tell(built)
        return built

    def close(self) -> None:
        """Close the connection to the database."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _failed(self, error: psycopg.Error | WarehouseError) -> float:
        waiting = None
        if isinstance(error, BuildError):
            try:
                waiting = self._waiting()
            except psycopg.Error as lost:  # the reason why dbt failed
                error = lost
        if isinstance(error, psycopg.Error):
            self.close()
        if self._attempts == 0:
            self._failing_since = time.monotonic()
        self._attempts += 1
        longest = min(_LONGEST_PAUSE, max(self._every, 1.0) * 2 ** min(self._attempts - 1, 10))
        pause = longest * random.uniform(0.5, 1.0)  # noqa: S311  # not a secret
        message = _sentence(error)
        is_known, self._message = message == self._message, message
        nodes = error.nodes if isinstance(error, BuildError) else ()
        self._tell(Failed(None if is_known else message, nodes, self._attempts, pause, waiting))
        return pause

    def _succeeded(self) -> None:
        if self._attempts:
            self._tell(Recovered(self._attempts, time.monotonic() - self._failing_since))
        self._attempts, self._message = 0, None

    def _waiting(self) -> Arrivals | None:
        watch = self._watch
        if watch is None:
            return None
        snapshot = watch.totals().snapshot
        return None if snapshot is None else watch.arrivals(snapshot)


def _built(watch: Watch, before: Totals, after: Totals, scope: Scope, seconds: float) -> Built:
    arrivals = None
    if before.snapshot is not None and after.snapshot is not None:
        arrivals = watch.arrivals(before.snapshot, after.snapshot)
    return Built(after.run_number, scope, arrivals, arrivals.lag if arrivals else None, seconds)


def _can_pass(error: Exception) -> bool:
    if isinstance(error, psycopg.Error):
        return isinstance(error, psycopg.OperationalError)
    return isinstance(error, BuildError)


def _more(error: Exception) -> str:
    more = len(error.nodes) - 1 if isinstance(error, BuildError) else 0
    return f" (and {more} more)" if more > 0 else ""


def _sentence(error: psycopg.Error | WarehouseError) -> str:
    return Target.of("").explain(error) if isinstance(error, psycopg.Error) else str(error)
