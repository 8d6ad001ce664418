"""A test's warehouse: raw rows put in directly, marts read back and compared with the oracle."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg

from tests.support.cost_oracle import Prices, count_costs, savings
from tests.support.oracle import Marts, Raw, Settings, Snapshot, count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.databases import Database

NUMBERS = (
    "tokens, input_tokens, output_tokens, event_count, cache_read_tokens, cache_write_tokens,"
    " cache_write_long_tokens, reasoning_tokens"
)
COSTS = (
    "tenant_id, token_type, operation, provider, model, token_kind, service_tier, price_list,"
    " is_billed, currency, tokens, cost, unpriced_tokens"
)
COLUMNS = {
    "hourly_token_usage": "usage_hour, usage_date, tenant_id, token_type, operation, model, "
    f"{NUMBERS}",
    "daily_token_usage": f"usage_date, tenant_id, token_type, operation, model, {NUMBERS}",
    "monthly_token_usage": f"usage_month, tenant_id, token_type, operation, model, {NUMBERS}",
    "daily_agent_token_usage": "usage_date, tenant_id, requester_tenant_id, agent_id, "
    "attribution_rule, tokens, event_count",
    "daily_token_cost": f"usage_date, {COSTS}",
    "monthly_token_cost": f"usage_month, {COSTS}",
    "daily_cache_savings": "usage_date, tenant_id, token_type, operation, provider, model,"
    " service_tier, price_list, is_billed, currency, tokens, saved",
    "unmapped_labels": "label_kind, label, tokens, event_count",
    "tenant_token_usage": "*",
}
NOW = ("hourly_token_usage", "daily_token_usage", "monthly_token_usage")
VIEWS = ("daily_cache_savings", "unmapped_labels", "tenant_token_usage")
ROLLUPS = tuple(mart for mart in COLUMNS if mart not in VIEWS)


class WrongTotalsError(AssertionError):
    """A mart differs from the oracle, or was written although nothing had changed."""


# Parts of an event's tokens: by default it has both, neither of them 0 nor equal to the other.
A_HALF, A_THIRD = -2, -3


@dataclass(frozen=True)
class Event:
    """A row for usage_events; a test sets only the fields that it is about."""

    key: str
    occurred_at: datetime
    tenant: str = "acme"
    tokens: int = 100
    token_type: str = "llm"
    operation: str = "query"
    model: str | None = "gpt-4o"
    agent: str | None = None
    input_tokens: int | None = A_HALF
    output_tokens: int | None = A_THIRD
    provider: str | None = "openai"
    service_tier: str | None = None

    @property
    def parts(self) -> list[int | None]:
        """Return input and output tokens, and parts of them that differ from each other."""
        whole_input, whole_output = (
            self.tokens // -part if part in {A_HALF, A_THIRD} else part
            for part in (self.input_tokens, self.output_tokens)
        )
        of_input = [None if whole_input is None else whole_input // part for part in (2, 3, 5)]
        reasoning = None if whole_output is None else whole_output // 4
        return [whole_input, whole_output, *of_input, reasoning]


@dataclass(frozen=True)
class Warehouse:
    """The database of one test."""

    database: Database
    settings: Settings = field(default_factory=Settings)

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[tuple[Any, ...]]:
        """Connect in a session whose time zone no answer may depend on."""
        return psycopg.connect(
            self.database.url, autocommit=autocommit, options="-c timezone=Asia/Kolkata"
        )

    def insert(
        self,
        events: Iterable[Event] = (),
        voids: Iterable[tuple[str, str]] = (),
        owners: Iterable[tuple[str, datetime, str | None]] = (),
        connection: psycopg.Connection[tuple[Any, ...]] | None = None,
    ) -> None:
        """Insert raw rows as the procedures would: a key is recorded once, owners by revision."""
        if connection is None:
            with closing(self.connect(autocommit=False)) as own:
                self.insert(events, voids, owners, own)
                own.commit()
            return
        with connection.cursor() as cursor:
            cursor.executemany(
                "insert into token_tracking_raw.usage_events (tenant_id, idempotency_key, tokens,"
                " token_type, operation, model, agent_id, provider, service_tier, input_tokens,"
                " output_tokens, cache_read_tokens, cache_write_tokens, cache_write_long_tokens,"
                " reasoning_tokens, occurred_at) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s,"
                " %s, %s, %s, %s, %s, %s) on conflict do nothing",
                [
                    (
                        event.tenant,
                        event.key,
                        event.tokens,
                        event.token_type,
                        event.operation,
                        event.model,
                        event.agent,
                        event.provider,
                        event.service_tier,
                        *event.parts,
                        event.occurred_at,
                    )
                    for event in events
                ],
            )
            cursor.executemany(
                "insert into token_tracking_raw.usage_voids"
                " (tenant_id, idempotency_key, reason, voided_by)"
                " values (%s, %s, 'test', 'test') on conflict do nothing",
                list(voids),
            )
            cursor.executemany(
                "insert into token_tracking_raw.agent_owners"
                " (agent_id, valid_from, revision, owner_tenant_id, recorded_by)"
                " select %(agent)s, %(instant)s, 1 + coalesce(max(revision), 0), %(owner)s, 'test'"
                " from token_tracking_raw.agent_owners"
                " where agent_id = %(agent)s and valid_from = %(instant)s",
                [
                    {"agent": agent, "instant": instant, "owner": owner}
                    for agent, instant, owner in owners
                ],
            )

    def record(
        self,
        procedure: str,
        *rows: dict[str, object],
        connection: psycopg.Connection[tuple[Any, ...]] | None = None,
    ) -> None:
        """Record prices, aliases, rules or assignments; each must be accepted."""
        if connection is None:
            with closing(self.connect()) as own:
                self.record(procedure, *rows, connection=own)
            return
        [(rejected, problems)] = connection.execute(
            f"select rejected, problems from token_tracking_raw.{procedure}(%s::json)",  # type: ignore[arg-type]
            (json.dumps(rows, default=str),),
        ).fetchall()
        assert rejected == 0, problems

    def marts(self) -> Marts:
        """Read every existing mart, sorted, with instants in UTC."""
        with closing(self.connect()) as connection:
            there = {
                name
                for (name,) in connection.execute(
                    "select relname from pg_class"
                    " where relnamespace = to_regnamespace('token_tracking')"
                )
            }
            return {
                mart: _sorted(connection, f"select {columns} from token_tracking.{mart}")
                for mart, columns in COLUMNS.items()
                if mart in there
            }

    def check_now(self) -> None:
        """Compare the totals as of now with the oracle, both in one snapshot."""
        with closing(self.connect(autocommit=False)) as connection:
            connection.execute("set transaction isolation level repeatable read")
            raw = Raw.read(connection)
            expected = count(raw, self.settings)
            expected |= count_costs(raw, Prices.read(connection), self.settings)
            for mart in (*NOW, "daily_token_cost"):
                found = _sorted(
                    connection, f"select {COLUMNS[mart]} from token_tracking.{mart}_now"
                )
                if found != expected[mart]:
                    wrong = sorted(set(found) ^ set(expected[mart]), key=repr)[:6]
                    message = f"{mart}_now: {wrong}"
                    raise WrongTotalsError(message)

    def price_snapshots(self) -> dict[str, str]:
        """Return, for each mart of costs that was built, what it saw of the prices."""
        if not self.status():
            return {}
        return dict(
            self.rows(
                "select model, price_snapshot::text from token_tracking.build_status"
                " where price_snapshot is not null"
            )
        )

    def status(self) -> dict[str, tuple[int, str]]:
        """Return run number and snapshot of each rollup that was built."""
        if self.rows("select to_regclass('token_tracking.build_status')") == [(None,)]:
            return {}
        return {
            model: (run_number, snapshot)
            for model, run_number, snapshot in self.rows(
                "select model, run_number, snapshot::text from token_tracking.build_status"
            )
        }

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with closing(self.connect()) as connection:
            return connection.execute(query).fetchall()  # type: ignore[arg-type]

    def expected(self) -> Marts:
        """Return the oracle's marts for the events and prices that the saved snapshots see."""
        with closing(self.connect()) as connection:
            raw, prices = Raw.read(connection), Prices.read(connection)
        _, snapshot = self.status()["int_usage__hourly"]
        raw = raw.as_of(Snapshot.parse(snapshot))
        of_build = prices.as_of(Snapshot.parse(self.price_snapshots()["daily_token_cost"]))
        return {
            **count(raw, self.settings),
            **count_costs(raw, of_build, self.settings),
            # A view, at the prices of now.
            "daily_cache_savings": savings(raw, prices, self.settings),
        }

    def check_billed_events(self) -> None:
        """Compare billed_events() with the view, row for row: each payer, some spans of time."""
        wrong = self.rows("""
            with
            bounds as (
                select min(occurred_at) as first, max(occurred_at) as last,
                    percentile_disc(0.5) within group (order by occurred_at) as middle
                from token_tracking.usage_events
            ),
            spans as (
                select span.*
                from bounds
                cross join lateral (
                    values
                    (1, null, null), (2, first, last), (3, middle, null), (4, null, middle),
                    (5, middle, middle + interval '1 microsecond'), (6, last, first)
                ) as span (number, starts, ends)
            ),
            payers as (
                select tenant_id from token_tracking.usage_events
                union select requester_tenant_id from token_tracking.usage_events
                union select owner_tenant_id from token_tracking.agent_owner_periods
                where owner_tenant_id is not null
            ),
            found as (
                select spans.number, events.*
                from payers
                cross join spans
                cross join lateral
                    token_tracking.billed_events(payers.tenant_id, starts, ends) as events
            ),
            expected as (
                select spans.number, events.*
                from spans
                inner join token_tracking.usage_events as events
                    on
                        (starts is null or events.occurred_at >= starts)
                        and (ends is null or events.occurred_at < ends)
            )
            (select 'wrong', * from found except all select 'wrong', * from expected)
            union all
            (select 'missing', * from expected except all select 'missing', * from found)
        """)
        if wrong:
            message = f"billed_events: {wrong[:5]}"
            raise WrongTotalsError(message)

    def check(self) -> Marts:
        """Compare every mart with the oracle, row for row; return the marts."""
        found, expected = self.marts(), self.expected()
        for mart, rows in expected.items():
            if found[mart] != rows:
                missing = sorted(set(rows) - set(found[mart]), key=repr)[:5]
                wrong = sorted(set(found[mart]) - set(rows), key=repr)[:5]
                message = f"{mart}: missing {missing}, wrong {wrong}"
                raise WrongTotalsError(message)
        return found


def _sorted(connection: psycopg.Connection[tuple[Any, ...]], query: str) -> list[tuple[Any, ...]]:
    return sorted(
        (
            tuple(value.astimezone(UTC) if isinstance(value, datetime) else value for value in row)
            for row in connection.execute(query)  # type: ignore[arg-type]
        ),
        key=repr,
    )
