"""What the calls of instrumented clients have left in the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.support.databases import Database
from token_tracking import UsageTracker

_EVENTS = """
    select jsonb_strip_nulls(
        to_jsonb(usage_events) - array['recorded_at', 'ingest_xid', 'occurred_at']
    )
    from token_tracking_raw.usage_events
    order by tenant_id, tokens
"""
KINDS = {"tokens": 130, "input_tokens": 100, "output_tokens": 30}
# Of a chat completion of `provider_server`, with the arguments that most tests give.
EVENT = KINDS | {
    "tenant_id": "acme",
    "token_type": "llm",
    "operation": "query",
    "metadata": {},
    "provider": "openai",
    "model": "gpt-4o-2024-08-06",
    "service_tier": "priority",
    "cache_read_tokens": 60,
    "cache_write_tokens": 10,
    "reasoning_tokens": 12,
}


@dataclass(frozen=True)
class Recorded:
    database: Database
    tracker: UsageTracker

    def events(self) -> list[dict[str, object]]:
        """Close the tracker, and return the events without their nulls."""
        self.tracker.close()
        return [event for (event,) in self.database.rows(_EVENTS)]

    def event(self) -> dict[str, object]:
        [event] = self.events()
        return event


async def cancel_amid(stream: AsyncIterator[object]) -> None:
    """Read the first chunk, then cancel a task that waits for more of a server that waits."""

    async def read() -> None:
        async for _ in stream:
            pass

    await anext(stream)
    task = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
