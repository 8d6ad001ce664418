"""The load: seeded events with 1 % retries, 5 % late ones and 0.1 % conflicts, of real sizes."""

from __future__ import annotations

import csv
import random
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from token_tracking.event.rules import to_wire

TRACE = Path(__file__).parents[3] / "shared" / "data" / "AzureLLMInferenceTrace_conv.csv"
START = datetime(2026, 3, 1, tzinfo=UTC)
RETRIES, LATE, CONFLICTS = 0.01, 0.05, 0.001
TENANTS = 50

Event = dict[str, object]


@cache
def sizes() -> list[tuple[int, int]]:
    """Return input and output tokens of calls: a real service's, or drawn without its file."""
    if TRACE.exists():
        with TRACE.open(newline="") as lines:
            return [
                (int(row["ContextTokens"]), int(row["GeneratedTokens"]))
                for row in csv.DictReader(lines)
            ]
    chance = random.Random(1)
    return [
        (int(chance.lognormvariate(6.5, 1)) + 1, int(chance.lognormvariate(4.8, 0.9)) + 1)
        for _ in range(20_000)
    ]


def events(
    number: int, seed: int, *, hot_tenant: float = 0.0, only_new: bool = False
) -> list[Event]:
    """Return so many events, by the column names of `usage_events`.

    Args:
        number: how many.
        seed: other seeds have other keys.
        hot_tenant: the share that one tenant has, beside its part of the others.
        only_new: without retries and conflicts.

    """
    chance = random.Random(seed)
    known = sizes()
    made: list[Event] = []
    for place in range(number):
        kind = chance.random()
        if made and not only_new and kind < RETRIES + CONFLICTS:
            again = dict(chance.choice(made))
            if kind >= RETRIES:
                again["tokens"] = int(str(again["tokens"])) + 1
            made.append(again)
            continue
        given, generated = chance.choice(known)
        when = START + timedelta(seconds=place % 86_400, microseconds=chance.randrange(10**6))
        if chance.random() < LATE:
            when -= timedelta(hours=chance.randrange(1, 24 * 40))
        tenant = 0 if chance.random() < hot_tenant else chance.randrange(TENANTS)
        event: Event = {
            "tenant_id": f"tenant-{tenant}",
            "idempotency_key": f"{seed:x}-{place:07}-{chance.getrandbits(64):016x}",
            "tokens": given + generated,
            "token_type": "llm",
            "operation": chance.choice(("chat", "query", "summarize")),
            "model": chance.choice(("gpt-4o", "gpt-4o-mini", "claude-sonnet-4")),
            "input_tokens": given,
            "output_tokens": generated,
            "metadata": {
                "operation_id": f"op-{place}",
                "execution_time_ms": chance.randrange(50, 9000),
            },
            "occurred_at": when,
        }
        if chance.random() < 0.3:
            event["agent_id"] = f"agent-{chance.randrange(200)}"
        made.append(event)
    return made


def recent(number: int, seed: int) -> list[Event]:
    """Return new events of the newest two hours of the past that `past.fill` makes."""
    chance = random.Random(seed)
    made = events(number, seed, only_new=True)
    for event in made:
        event["occurred_at"] = START - timedelta(seconds=chance.uniform(0, 7200))
    return made


def batches(of: list[Event], size: int = 1000) -> list[str]:
    """Return the events as JSON arrays of so many, in the form in which the package sends them."""
    now = datetime.now(UTC)
    made = [to_wire(event, now) for event in of]
    parts = (made[start : start + size] for start in range(0, len(made), size))
    return [
        "["
        + b",".join(
            event.payload
            for event in sorted(part, key=lambda event: (event.tenant_id, event.idempotency_key))
        ).decode()
        + "]"
        for part in parts
    ]
