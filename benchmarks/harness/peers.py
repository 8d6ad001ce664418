"""Peers: what else one could do, in the same run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg

    from .bench import Bench, Database
    from .workload import Event

COLUMNS = (
    "tenant_id text, idempotency_key text, tokens bigint, token_type text, operation text,"
    " model text, agent_id text, conversation_id text, collection_id text, input_tokens bigint,"
    " output_tokens bigint, metadata jsonb, occurred_at timestamptz"
)
BARE_TABLE = f"create table bare ({COLUMNS}, primary key (tenant_id, idempotency_key))"
BARE_INSERT = (
    f"insert into bare select * from json_to_recordset(%s::json) as event ({COLUMNS})"
    " on conflict do nothing"
)
NAMES = [column.split()[0] for column in COLUMNS.split(", ")]
ONE_BY_ONE = (
    f"insert into bare ({', '.join(NAMES)}) values ({', '.join(['%s'] * len(NAMES))})"
    " on conflict do nothing"
)


def bare(connection: psycopg.Connection[tuple], batches: list[str]) -> float:
    """Return the seconds of inserts into a table that has a primary key and nothing else."""
    return timed(connection, BARE_INSERT, batches)


def timed(connection: psycopg.Connection[tuple], statement: str, batches: list[str]) -> float:
    """Return the seconds of one prepared statement for each batch."""
    started = time.perf_counter()
    for batch in batches:
        connection.execute(statement, (batch,), prepare=True)  # type: ignore[arg-type]
    return time.perf_counter() - started


def row(event: Event) -> list[object]:
    """Return the values of an event's row in that table."""
    from psycopg.types.json import Jsonb

    return [Jsonb(value) if isinstance(value := event.get(name), dict) else value for name in NAMES]


async def pooled(url: str, events: list[Event]) -> list[float]:
    """Return the seconds of each of these inserts, awaited and committed: a service's own code."""
    from psycopg_pool import AsyncConnectionPool

    took: list[float] = []
    async with AsyncConnectionPool(url, min_size=1) as pool:
        await pool.wait()
        for event in events:
            before = time.perf_counter()
            async with pool.connection() as connection:
                await connection.execute(ONE_BY_ONE, row(event))  # type: ignore[arg-type]
            took.append(time.perf_counter() - before)
    return took


def executemany(connection: psycopg.Connection[tuple], events: list[Event]) -> float:
    """Return the seconds of psycopg's pipelined `executemany` into that table, 1,000 a commit."""
    rows = [row(event) for event in events]
    started = time.perf_counter()
    for start in range(0, len(rows), 1000):
        with connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(ONE_BY_ONE, rows[start : start + 1000])
    return time.perf_counter() - started


# The design that counts up in place: who owns the agent, was the key seen, the day's counter, and a
# trigger for the month's. Its faults (the trigger misses updates) do not matter to its speed.
COUNTERS = """
create table owners (agent_id text primary key, tenant_id text);
insert into owners select 'agent-' || n, 'tenant-' || n % 50 from generate_series(0, 199) as n;
create table seen_keys (idempotency_key text primary key, seen_at timestamptz default now());
create table daily (
    tenant_id text, usage_date date, token_type text, operation text, tokens bigint,
    primary key (tenant_id, usage_date, token_type, operation)
);
create table monthly (
    tenant_id text, usage_month date, tokens bigint, primary key (tenant_id, usage_month)
);
create function count_month() returns trigger language plpgsql as $$
begin
    insert into monthly values (new.tenant_id, date_trunc('month', new.usage_date), new.tokens)
    on conflict (tenant_id, usage_month) do update set tokens = monthly.tokens + excluded.tokens;
    return null;
end $$;
create trigger count_month after insert on daily for each row execute function count_month();
create function count_usage(p_tenant text, p_agent text, p_tokens bigint, p_key text)
returns boolean language plpgsql as $$
declare
    payer text;
begin
    if exists (select 1 from seen_keys where idempotency_key = p_key) then
        return true;
    end if;
    insert into seen_keys (idempotency_key) values (p_key);
    select tenant_id into payer from owners where agent_id = p_agent;
    insert into daily values (coalesce(payer, p_tenant), current_date, 'llm', 'chat', p_tokens)
    on conflict (tenant_id, usage_date, token_type, operation)
    do update set tokens = daily.tokens + excluded.tokens;
    return true;
end $$;
"""
COUNT_ONE = """
\\set tenant random(0, 49)
\\set agent random(0, 199)
select count_usage('tenant-' || :tenant, 'agent-' || :agent, 7, gen_random_uuid()::text);
"""


def counters(bench: Bench, database: Database, seconds: int) -> float:
    """Return the calls a second of counters that are incremented, with 32 clients."""
    return bench.pgbench(database, COUNT_ONE, clients=32, seconds=seconds)
