"""The turns of a refresh: look, build where there is something new, tell, wait."""

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
# A snapshot that has seen nothing.
_BEFORE_ALL = "1:1:"


@dataclass(frozen=True)
class Built:
    """A build that succeeded: what it brought in, and when.

    `lag` is the age, when the totals were there, of the oldest row that it brought in: no recorded
    call waited longer for its totals. None: nothing came in, or all was counted for the first time.
    """

    run_number: int | None
    scope: Scope
    arrivals: Arrivals | None
    lag: float | None
    seconds: float


@dataclass(frozen=True)
class Failed:
    """A turn that failed, for the `attempt`th time in a row; `retry` in so many seconds.

    `message` is None where it is the one of the attempt before. `waiting` is what the totals lack,
    where the database can say it.
    """

    message: str | None
    nodes: tuple[str, ...]
    attempt: int
    retry: float
    waiting: Arrivals | None


@dataclass(frozen=True)
class Recovered:
    """The first turn that succeeds after others that did not."""

    attempts: int
    seconds: float


Told = Built | Failed | Recovered


class Refresh:
    """Keeps the totals as young as `every` seconds and a build take."""

    def __init__(
        self, dbt: ResidentDbt, every: float, tell: Callable[[Told], None], stop: threading.Event
    ) -> None:
        self._dbt = dbt
        self._every = every
        self._tell = tell
        self._stop = stop
        self._watch: Watch | None = None
        self._inputs = ""
        self._due = True  # the first turn builds: files, variables or the seed may be others
        self._seed_is_due = True
        self._has_built = False
        self._attempts = 0
        self._message: str | None = None
        self._failing_since = 0.0

    def run(self) -> None:
        """Take turns until `stop` is set; a failure is told, and the turn taken again later.

        Raises:
            WarehouseError: the first turn failed for a reason that no waiting mends.

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
        """Take one turn, which builds.

        Raises:
            WarehouseError: it failed.

        """
        try:
            self.turn()
        except (psycopg.Error, WarehouseError) as error:
            message = f"{_sentence(error)}{_more(error)}"
            raise WarehouseError(message) from error
        finally:
            self.close()

    def turn(self) -> Built | None:
        """Build where there is something new; None where there is not.

        Raises:
            BuildError: a node failed.
            WarehouseError: the project cannot be read.
            psycopg.Error: the database cannot be asked.

        """
        if self._dbt.read():
            self.close()
            self._due = self._seed_is_due = True
        watch = self._watch = self._watch or Watch(self._dbt.schema, self._dbt.relations)
        before = watch.totals()
        # Also where nothing was built: it is the raw schema that may be missing.
        is_waiting = watch.is_waiting(before.snapshot or _BEFORE_ALL)
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
            except psycopg.Error as lost:  # which is why dbt failed
                error = lost
        if isinstance(error, psycopg.Error):
            self.close()
        if self._attempts == 0:
            self._failing_since = time.monotonic()
        self._attempts += 1
        longest = min(_LONGEST_PAUSE, max(self._every, 1.0) * 2 ** min(self._attempts - 1, 10))
        pause = longest * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
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
