"""The connection to PostgreSQL: found like libpq does, and never waiting longer than it may."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, cast

import psycopg
from psycopg import capabilities, generators
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import TransactionResolutionUnknown, error_from_result
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.rows import tuple_row

from ..errors import SettingsError
from ..event.fields import CLOCK_TOLERANCE
from ..target import Target, dsn_problem, given_dsn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self, TypeVar

    from psycopg.abc import PQGen
    from psycopg.errors import Diagnostic

    RV = TypeVar("RV")

Row = tuple[object, ...]
Kind = Literal["conflict", "rejection", "early"]

# What is ours when nobody says otherwise.
_DEFAULTS: dict[str, str | int | None] = {
    "fallback_application_name": "token-tracking",
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
_CLOCK_STEP_SECONDS = 1.0
_CANCEL_SECONDS = 1.0
# Where the server says that it has committed, but that somebody ended its wait for the standby.
_WAIT_FOR_STANDBY = "SyncRepWaitForLSN"

# A statement that we gave up must not stay behind on the server, waiting for a lock. The bound is
# set within the statement, for it alone: the session may be a pooler's, and so somebody else's in a
# moment. In an argument it is set before the call; a CTE would take five times as long.
_BATCH = """
    select *
    from token_tracking_raw.track_token_usage_batch(
        case
            when set_config('lock_timeout', $2, true) is not null
                and set_config('token_tracking.keeps_early', 'on', true) is not null
                then $1::json
        end
    )
"""
_REJECT = """
    select token_tracking_raw.reject_usage_event(
        case when set_config('lock_timeout', %s, true) is not null then %s::json end, %s
    )
"""
_REJECT_ALL = """
    select token_tracking_raw.reject_usage_event(
        case when set_config('lock_timeout', %s, true) is not null then payload::json end, reason
    )
    from unnest(%s::text[], %s::text[]) as refused (payload, reason)
"""
_VOID = """
    select token_tracking_raw.void_token_usage(
        case when set_config('lock_timeout', %s, true) is not null then %s end, %s, %s
    )
"""
_OWNER = """
    select token_tracking_raw.record_agent_owner_once(
        case when set_config('lock_timeout', %s, true) is not null then %s end,
        %s, %s::timestamptz, %s::uuid
    )
"""
# How a schema of before says it, which does not know of early events and keeps a rejection.
_EARLY_REASON = "occurred_at: a time in the future"
# The counter is never set back where it is the same database: what is behind is a copy, or lost.
_IDENTITY = """
    select
        format('%s/%s/%s', control.system_identifier, pg_database.oid, pg_database.datname),
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    from pg_control_system() as control
    cross join pg_database
    where pg_database.datname = current_database()
"""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why one event of a batch does not count: its zero-based index, None for the whole batch."""

    index: int | None
    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of the events of one batch; the five counts add up to their number.

    Early ones are ahead of the server's clock: it kept nothing of them, they can be sent again.
    """

    recorded: int
    duplicates: int
    conflicts: int
    rejected: int
    early: int
    problems: tuple[Problem, ...]


def _completed(conninfo: str, patience: float | None) -> str:
    """Add our defaults for what neither the connection string nor libpq's variables say."""
    given = conninfo_to_dict(conninfo)
    wanted = _DEFAULTS.copy()
    if patience is not None and not os.environ.get("PGCONNECT_TIMEOUT"):
        wanted["connect_timeout"] = max(2, round(patience))
    hosts = str(given.get("host") or os.environ.get("PGHOST", ""))
    if "," in hosts and not os.environ.get("PGTARGETSESSIONATTRS"):
        wanted["target_session_attrs"] = "read-write"  # after a failover, one that writes
    # Whatever PGCLIENTENCODING or the database says, we speak UTF-8.
    return make_conninfo(conninfo, **{**wanted, **given, "client_encoding": "utf8"})


def _problem(entry: dict[str, object]) -> Problem:
    reason = cast("str", entry["reason"])
    kind = "early" if reason.startswith(_EARLY_REASON) else cast("Kind", entry["kind"])
    return Problem(cast("int | None", entry["index"]), kind, reason)


def _clock_since_boot() -> float:
    """Return what stays the same until somebody sets this machine's clock, or it was asleep."""
    return time.time() - time.monotonic()


class Connection(psycopg.Connection[Row]):
    """A connection whose every wait ends: a server gone silent answers no timeout of its own.

    `patience` is the most that one statement may take, in seconds; past it the wait raises, and the
    connection is good for nothing but `close()`. `lock_timeout` is the most that it may wait for
    one lock, in milliseconds; past it the statement fails, and the connection is as good as before.
    """

    patience: float | None = None
    lock_timeout: int = 5000
    # Seconds that this machine's clock is ahead of the server's, as far as the connection shows.
    clock_ahead: float = 0.0
    compared_at: float = 0.0
    _clock_at_comparison: float = 0.0
    _is_only_local: bool = False

    @classmethod
    def open(cls, dsn: str | None = None, *, patience: float | None = None) -> Self:
        """Connect in autocommit mode; `patience` bounds the attempt, too (seconds, at least 2).

        Without `dsn` the setting TOKEN_TRACKING_DSN decides, then libpq's variables.

        Raises:
            SettingsError: the connection string cannot be read.
            psycopg.OperationalError: there is no connection to be had.

        """
        given = given_dsn(dsn)
        if problem := dsn_problem(given):
            error = SettingsError(f"setting dsn (TOKEN_TRACKING_DSN): {problem}")
            error.add_note(str(error))
            raise error
        # Nothing is set in the session or prepared on the server: poolers hand the next statement
        # to another one, and this one to somebody else.
        try:
            database = cls.connect(
                _completed(given, patience),
                autocommit=True,
                row_factory=tuple_row,
                prepare_threshold=None,
            )
        except psycopg.OperationalError as error:
            if said := Target.of(given).said(error):
                error.add_note(said)
            raise
        database.patience = patience
        database.add_notice_handler(database._note)
        try:
            database.compare_clocks()
        except BaseException:
            database.close()
            raise
        return database

    def identity(self) -> tuple[str, int]:
        """Return what names this database, however it is reached, and how far its counter is.

        A standby that takes over has the same name; so has a copy of the whole cluster's files. A
        database restored from a dump has another one. Empty where the server does not tell.
        """
        try:
            name, transaction = cast("tuple[str, int]", self.execute(_IDENTITY).fetchone())
        except psycopg.Error:
            if not self.is_idle():
                raise
            return "", 0
        return name, transaction

    def is_idle(self) -> bool:
        """Say whether the connection is whole and nothing is under way on it."""
        return self.pgconn.transaction_status == TransactionStatus.IDLE

    def abandon(self) -> None:
        """Close it, and end what the server may still be doing for it.

        A backend that waits for a synchronous standby sees no client go: without this each attempt
        would leave one more behind.
        """
        if capabilities.has_cancel_safe():  # the older way could hang
            with contextlib.suppress(Exception):
                self.cancel_safe(timeout=_CANCEL_SECONDS)
        self.close()

    def clock_was_set(self) -> bool:
        """Say whether `latest_occurrence` has to ask the server for its time again."""
        return abs(_clock_since_boot() - self._clock_at_comparison) > _CLOCK_STEP_SECONDS

    def latest_occurrence(self) -> bytes:
        """Return the latest `occurred_at` that the server takes by its own clock, in ISO 8601."""
        if self.clock_was_set():
            self.compare_clocks()
        ahead = timedelta(seconds=self.clock_ahead + 1)  # and a second for what that leaves out
        return (datetime.now(UTC) - ahead + CLOCK_TOLERANCE).isoformat().encode()

    def compare_clocks(self) -> None:
        """Ask the server for its time; `compared_at` is when, by the monotonic clock."""
        row = self.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
        self.clock_ahead = time.time() - cast("float", cast("Row", row)[0])
        self._clock_at_comparison = _clock_since_boot()
        self.compared_at = time.monotonic()

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Wait as psycopg does, for `patience` at most.

        Raises:
            psycopg.errors.TransactionResolutionUnknown: it is committed, but the wait for the
                synchronous standby was cancelled: a failover may lose it.

        """
        result = super().wait(gen, interval, timeout if timeout is not None else self.patience)
        if self._is_only_local:
            message = "committed, and not known to have reached the synchronous standby"
            raise TransactionResolutionUnknown(message)
        return result

    def _note(self, notice: Diagnostic) -> None:
        # A warning beside an answer that reads like any other one.
        if notice.source_function == _WAIT_FOR_STANDBY:
            self._is_only_local = True

    def record(self, payload: bytes) -> BatchResult:
        """Record a JSON array of events, each with the column names of `usage_events`."""
        self.begin_to_record(payload)
        return self.end_of_record()

    def begin_to_record(self, payload: bytes) -> None:
        """Do as `record`, but do not wait: `end_of_record` is what has to be called next."""
        self.pgconn.send_query_params(
            _BATCH.encode(),
            [payload, b"%d" % self.lock_timeout],
            param_formats=[Format.BINARY, Format.TEXT],
        )

    def end_of_record(self) -> BatchResult:
        """Wait for the commit of what `begin_to_record` sent, and say what became of its events.

        Raises:
            psycopg.Error: it failed, or its outcome is not known.

        """
        results = self.wait(generators.execute(self.pgconn))
        for result in results:  # the error of a commit that fails comes after the row
            if result.status != ExecStatus.TUPLES_OK:
                raise error_from_result(result)
        answer = results[0]
        recorded, duplicates, conflicts, rejected = (
            int(answer.get_value(0, column) or 0) for column in range(4)
        )
        problems = tuple(_problem(entry) for entry in json.loads(answer.get_value(0, 4) or b"[]"))
        early = sum(problem.kind == "early" for problem in problems)
        return BatchResult(recorded, duplicates, conflicts, rejected - early, early, problems)

    def reject(self, payload: bytes, reason: str) -> None:
        """Keep a payload that was refused before it became an event."""
        self.execute(_REJECT, (self._lock_timeout(), payload.decode(), reason))

    def reject_all(self, refused: Sequence[tuple[bytes, str]]) -> None:
        """Keep many payloads that were refused, in one order for all writers."""
        ordered = sorted(refused)
        payloads = [payload.decode() for payload, _ in ordered]
        reasons = [reason for _, reason in ordered]
        self.execute(_REJECT_ALL, (self._lock_timeout(), payloads, reasons))

    def void(self, tenant_id: str, idempotency_key: str, reason: str) -> bool:
        """Take an event out of all totals; False where the procedure refuses the input."""
        given = (self._lock_timeout(), tenant_id, idempotency_key, reason)
        return self._truth(self.execute(_VOID, given))

    def record_owner(
        self, agent_id: str, owner_tenant_id: str | None, valid_from: str, call_id: str
    ) -> bool:
        """Record an agent's owner from an instant; False where the procedure refuses the input.

        A call that is known by its id, a UUID, changes nothing.
        """
        given = (self._lock_timeout(), agent_id, owner_tenant_id, valid_from, call_id)
        return self._truth(self.execute(_OWNER, given))

    def _lock_timeout(self) -> str:
        return str(self.lock_timeout)

    @staticmethod
    def _truth(cursor: psycopg.Cursor[Row]) -> bool:
        row = cursor.fetchone()
        return bool(row and row[0])
