"""A long past, written straight into the raw table as the procedures would have left it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .workload import TENANTS

if TYPE_CHECKING:
    from .bench import Database

# Until the load's start, by the load's tenants, in the order of time; one transaction a million.
_FILL = """
insert into token_tracking_raw.usage_events (
    tenant_id, idempotency_key, tokens, token_type, operation, model, agent_id, input_tokens,
    output_tokens, metadata, occurred_at
)
select
    'tenant-' || abs(hashint8(number) % {tenants}),
    'past-' || lpad(number::text, 9, '0') || '-' || md5(number::text),
    1000 + number % 4000,
    'llm',
    (array['chat', 'query', 'summarize'])[1 + number % 3],
    (array['gpt-4o', 'gpt-4o-mini', 'claude-sonnet-4'])[1 + number / 7 % 3],
    case when number % 10 < 3 then 'agent-' || number % 200 end,
    900 + number % 4000,
    100,
    jsonb_build_object('operation_id', 'op-' || number, 'execution_time_ms', number % 9000),
    timestamptz '2026-03-01 00:00:00+00' - interval '1 day' * {days} * (1 - number / {number}.0)
from generate_series({first}::bigint, {last}::bigint) as number
"""
_PART = 1_000_000
# As many events in each hour, however long the history: about 4,600.
_A_DAY = 20_000_000 / 180


def fill(database: Database, number: int) -> None:
    """Put so many events into the past of a database, and let PostgreSQL look at them.

    Twenty million are half a year; more of them are a longer past, not a denser one.
    """
    days = number / _A_DAY
    for first in range(1, number + 1, _PART):
        last = min(first + _PART - 1, number)
        database.run(
            _FILL.format(first=first, last=last, number=number, days=days, tenants=TENANTS)
        )
    database.run("vacuum analyze token_tracking_raw.usage_events")
    database.run("checkpoint")
