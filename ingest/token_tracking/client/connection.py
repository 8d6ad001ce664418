"""The connection to PostgreSQL: configured like any libpq connection, with bounded waits."""

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
from ..event.fields import CLOCK_TOLERANCE, EVENT_FIELDS
from ..target import Target, dsn_problem, given_dsn
from .named_statement import NamedStatement

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self, TypeVar

    from psycopg.abc import PQGen
    from psycopg.errors import Diagnostic

    RV = TypeVar("RV")

Row = tuple[object, ...]
Kind = Literal["conflict", "rejection", "early"]

# Connection parameters that apply unless the user sets them.
_DEFAULTS: dict[str, str | int | None] = {
    "fallback_application_name": "token-tracking",
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
_CLOCK_STEP_SECONDS = 1.0
_CANCEL_SECONDS = 1.0
# The server function that warns of a commit whose wait for the standby was cancelled.
_WAIT_FOR_STANDBY = "SyncRepWaitForLSN"

# An abandoned statement must not keep waiting for a lock on the server. lock_timeout is set within
# the statement and for it alone, since a pooler may give the session to another client afterwards.
# As part of an argument it is set before the call; a CTE would take five times as long.
_BATCH = """
    select recorded, duplicates, conflicts, rejected, problems
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
_BATCH_FORMATS = (Format.BINARY, Format.TEXT)
# Reasons of an older schema: it keeps early events as rejections, and lacks fields that came later.
_EARLY_REASON = "occurred_at: a time in the future"
_LATER_FIELDS = tuple(f"{name}: unknown field; " for name in EVENT_FIELDS)
# A database's transaction counter never goes back: one that is behind is a copy or lost data.
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
    """Why an event of a batch does not count. `index` is zero-based, None for the whole batch."""

    index: int | None
    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of one batch; the five counts add up to the number of its events.

    Early events are ahead of the server's clock, or have fields that its schema does not know yet:
    the server recorded nothing, so they can be resent.
    """

    recorded: int
    duplicates: int
    conflicts: int
    rejected: int
    early: int
    problems: tuple[Problem, ...]


def _completed(conninfo: str, patience: float | None) -> str:
    """Add defaults for the parameters that neither the string nor libpq's variables set."""
    given = conninfo_to_dict(conninfo)
    wanted = _DEFAULTS.copy()
    if patience is not None and not os.environ.get("PGCONNECT_TIMEOUT"):
        wanted["connect_timeout"] = max(2, round(patience))
    hosts = str(given.get("host") or os.environ.get("PGHOST", ""))
    if "," in hosts and not os.environ.get("PGTARGETSESSIONATTRS"):
        wanted["target_session_attrs"] = "read-write"  # find the new primary after a failover
    # Always UTF-8, whatever PGCLIENTENCODING or the database's encoding is.
    return make_conninfo(conninfo, **{**wanted, **given, "client_encoding": "utf8"})


def _problem(entry: dict[str, object]) -> Problem:
    reason = cast("str", entry["reason"])
    is_early = reason.startswith((_EARLY_REASON, *_LATER_FIELDS))
    kind = "early" if is_early else cast("Kind", entry["kind"])
    return Problem(cast("int | None", entry["index"]), kind, reason)


def _clock_since_boot() -> float:
    """Return a value that is constant until this machine's clock is set or the machine sleeps."""
    return time.time() - time.monotonic()


class Connection(psycopg.Connection[Row]):
    """A connection that bounds every wait itself, as an unresponsive server enforces no timeout.

    `patience` is the maximum duration of a statement in seconds: after that the wait raises an
    error, and the connection can only be closed. `lock_timeout` is the maximum wait for one lock in
    milliseconds: after that the statement fails, and the connection stays usable.
    """

    _batch: NamedStatement
    patience: float | None = None
    lock_timeout: int = 5000
    # Seconds by which this machine's clock is ahead of the server's, as last measured.
    clock_ahead: float = 0.0
    compared_at: float = 0.0
    _clock_at_comparison: float = 0.0
    _is_only_local: bool = False
    # The values of the batch in progress.
    _sent: tuple[bytes, ...] = ()

    @classmethod
    def open(cls, dsn: str | None = None, *, patience: float | None = None) -> Self:
        """Connect in autocommit mode; `patience` (seconds) also bounds the attempt, at 2 or more.

        `dsn` defaults to the setting TOKEN_TRACKING_DSN, then to libpq's variables.

        Raises:
            SettingsError: the connection string cannot be parsed.
            psycopg.OperationalError: the connection failed.

        """
        given = given_dsn(dsn)
        if problem := dsn_problem(given):
            error = SettingsError(f"setting dsn (TOKEN_TRACKING_DSN): {problem}")
            error.add_note(str(error))
            raise error
        # No session settings, and no statements prepared by psycopg: a pooler may run the
        # next statement in another session, and give this session to another client.
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
        database._batch = NamedStatement("track_token_usage_batch", _BATCH)
        database.add_notice_handler(database._note)
        try:
            database.compare_clocks()
        except BaseException:
            database.close()
            raise
        return database

    def identity(self) -> tuple[str, int]:
        """Return the database's identity, whatever way leads to it, and its transaction counter.

        A promoted standby has the same identity, and so has a copy of the cluster's files. A
        database restored from a dump has a new one. Empty if the server does not reveal it.
        """
        try:
            name, transaction = cast("tuple[str, int]", self.execute(_IDENTITY).fetchone())
        except psycopg.Error:
            if not self.is_idle():
                raise
            return "", 0
        return name, transaction

    def is_idle(self) -> bool:
        """Return whether the connection is usable and no statement is in progress."""
        return self.pgconn.transaction_status == TransactionStatus.IDLE

    def abandon(self) -> None:
        """Cancel the statement in progress and close the connection.

        A backend that waits for a synchronous standby does not notice that its client is gone:
        without the cancel, each attempt would leave one more backend behind.
        """
        if capabilities.has_cancel_safe():  # the older cancel could hang
            with contextlib.suppress(Exception):
                self.cancel_safe(timeout=_CANCEL_SECONDS)
        self.close()

    def clock_was_set(self) -> bool:
        """Return whether `latest_occurrence` has to ask the server for its time again."""
        return abs(_clock_since_boot() - self._clock_at_comparison) > _CLOCK_STEP_SECONDS

    def latest_occurrence(self) -> bytes:
        """Return the latest `occurred_at` that the server accepts by its clock, in ISO 8601."""
        if self.clock_was_set():
            self.compare_clocks()
        ahead = timedelta(seconds=self.clock_ahead + 1)  # plus one second of tolerance
        return (datetime.now(UTC) - ahead + CLOCK_TOLERANCE).isoformat().encode()

    def compare_clocks(self) -> None:
        """Ask the server for its time; set `compared_at` to now by the monotonic clock."""
        row = self.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
        self.clock_ahead = time.time() - cast("float", cast("Row", row)[0])
        self._clock_at_comparison = _clock_since_boot()
        self.compared_at = time.monotonic()

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Wait as psycopg does, for `patience` at most.

        Raises:
            psycopg.errors.TransactionResolutionUnknown: the statement is committed, but the wait
                for the synchronous standby was cancelled: a failover may lose it.

        """
        result = super().wait(gen, interval, timeout if timeout is not None else self.patience)
        if self._is_only_local:
            message = "committed, and not known to have reached the synchronous standby"
            raise TransactionResolutionUnknown(message)
        return result

    def _note(self, notice: Diagnostic) -> None:
        # The result itself looks like any other: only this warning tells.
        if notice.source_function == _WAIT_FOR_STANDBY:
            self._is_only_local = True

    def is_to_prepare(self) -> bool:
        """Return whether `prepare` has something to do, which takes a round trip."""
        return self._batch.is_due()

    def prepare(self) -> None:
        """Prepare the statement that records batches, which saves parsing and planning it.

        Raises:
            psycopg.Error: the connection is lost, or the wait was too long.

        """
        self._batch.begin_to_prepare(self.pgconn)
        results = self.wait(generators.execute(self.pgconn))
        if not self.is_idle():
            raise error_from_result(results[0])
        self._batch.end_of_prepare(results[0])

    def record(self, payload: bytes) -> BatchResult:
        """Record a JSON array of events, each with the column names of `usage_events`."""
        self.begin_to_record(payload)
        return self.end_of_record()

    def begin_to_record(self, payload: bytes) -> None:
        """Start `record` without waiting; the next call must be `end_of_record`."""
        self._sent = payload, b"%d" % self.lock_timeout
        self._batch.send(self.pgconn, self._sent, _BATCH_FORMATS)

    def end_of_record(self) -> BatchResult:
        """Wait until the batch of `begin_to_record` is committed, and return its result.

        Raises:
            psycopg.Error: the batch failed, or its outcome is unknown.

        """
        began = time.monotonic()
        results = self.wait(generators.execute(self.pgconn))
        if self._batch.falls_back(results[0]):
            self._batch.send(self.pgconn, self._sent, _BATCH_FORMATS)
            results = self.wait(generators.execute(self.pgconn), timeout=self._left_since(began))
        self._sent = ()
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
        """Store a payload that was refused before it became an event."""
        self.execute(_REJECT, (self._lock_timeout(), payload.decode(), reason))

    def reject_all(self, refused: Sequence[tuple[bytes, str]]) -> None:
        """Store many refused payloads, in the order that all writers share."""
        ordered = sorted(refused)
        payloads = [payload.decode() for payload, _ in ordered]
        reasons = [reason for _, reason in ordered]
        self.execute(_REJECT_ALL, (self._lock_timeout(), payloads, reasons))

    def void(self, tenant_id: str, idempotency_key: str, reason: str) -> bool:
        """Exclude an event from all totals; return False if the procedure rejects the input."""
        given = (self._lock_timeout(), tenant_id, idempotency_key, reason)
        return self._truth(self.execute(_VOID, given))

    def record_owner(
        self, agent_id: str, owner_tenant_id: str | None, valid_from: str, call_id: str
    ) -> bool:
        """Record an agent's owner from an instant; return False if the procedure rejects the input.

        A call whose id (a UUID) is recorded already has no effect.
        """
        given = (self._lock_timeout(), agent_id, owner_tenant_id, valid_from, call_id)
        return self._truth(self.execute(_OWNER, given))

    def _left_since(self, began: float) -> float | None:
        if self.patience is None:
            return None
        return max(0.01, self.patience - (time.monotonic() - began))

    def _lock_timeout(self) -> str:
        return str(self.lock_timeout)

    @staticmethod
    def _truth(cursor: psycopg.Cursor[Row]) -> bool:
        row = cursor.fetchone()
        return bool(row and row[0])
