"""A long past, written straight into the raw table as the procedures would have left it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bench import Database

# Half a year until the load's start, 300 tenants, in the order of time; one transaction a million.
_FILL = """
insert into token_tracking_raw.usage_events (
    tenant_id, idempotency_key, tokens, token_type, operation, model, agent_id, input_tokens,
    output_tokens, metadata, occurred_at
)
select
    'tenant-' || hashint8(number) % 150 + 150,
    'past-' || lpad(number::text, 9, '0') || '-' || md5(number::text),
    1000 + number % 4000,
    'llm',
    (array['chat', 'query', 'summarize'])[1 + number % 3],
    (array['gpt-4o', 'gpt-4o-mini', 'claude-sonnet-4'])[1 + number / 7 % 3],
    case when number % 10 < 3 then 'agent-' || number % 200 end,
    900 + number % 4000,
    100,
    jsonb_build_object('operation_id', 'op-' || number, 'execution_time_ms', number % 9000),
    timestamptz '2026-03-01 00:00:00+00' - interval '180 days' * (1 - number / {number}.0)
from generate_series({first}::bigint, {last}::bigint) as number
"""
_PART = 1_000_000


def fill(database: Database, number: int) -> None:
    """Put so many events into the past of a database, and let PostgreSQL look at them."""
    for first in range(1, number + 1, _PART):
        last = min(first + _PART - 1, number)
        database.run(_FILL.format(first=first, last=last, number=number))
    database.run("vacuum analyze token_tracking_raw.usage_events")
    database.run("checkpoint")
