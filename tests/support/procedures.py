"""Calling the procedures, in both forms of an event."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from tests.support.bad_events import GOOD
from tests.support.databases import Database
from token_tracking.event.rules import to_wire

BATCH = "select * from token_tracking_raw.track_token_usage_batch(%s::json)"


def send(database: Database, events: object) -> tuple:
    text = events if isinstance(events, str) else json.dumps(events)
    [result] = database.rows(BATCH, (text,))
    return result


def event(key: str | None, **fields: object) -> dict[str, object]:
    return {**GOOD, "idempotency_key": key, **fields}


def canonical(events: list[dict[str, object]]) -> str:
    """Return the events as the package sends them, in the form that needs no closer look."""
    now = datetime.now(UTC)
    return f"[{','.join(to_wire(one, now).payload.decode() for one in events)}]"


each_form = pytest.mark.parametrize("form", [canonical, json.dumps])
