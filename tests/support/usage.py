"""Usage of many months, made of a seed."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from tests.support.oracle import OPERATIONS, TOKEN_TYPES
from tests.support.warehouse import Event


def believable_usage(seed: int, size: int) -> dict[str, list]:
    """Make events of 14 months: shared, sold and deleted agents, voids, misspelt labels."""
    dice = random.Random(seed)
    tenants = [f"tenant-{number}" for number in range(8)]
    agents = [f"agent-{number}" for number in range(12)]
    first = datetime(2025, 1, 30, tzinfo=UTC)
    labels = [*TOKEN_TYPES[:-1], "embeddings", "finetune", "video"]
    operations = [*OPERATIONS[:-1], "sumarize", "completion", "dance"]

    def instant() -> datetime:
        if dice.random() < 0.3:
            # Near a midnight of some zone, a month's end, a change of the clocks.
            around = dice.choice(
                [
                    datetime(2025, 3, 30, 1, tzinfo=UTC),
                    datetime(2025, 10, 26, 1, tzinfo=UTC),
                    datetime(2025, 12, 31, 18, 30, tzinfo=UTC),
                    datetime(2026, 1, 1, tzinfo=UTC),
                    datetime(2025, 2, 28, 18, 15, tzinfo=UTC),
                ]
            )
            return around + timedelta(microseconds=dice.randint(-1, 1) * 10 ** dice.randint(0, 10))
        return first + timedelta(
            seconds=dice.randint(0, 420 * 86400), microseconds=dice.randint(0, 9)
        )

    owners = [
        (agent, instant() if dice.random() < 0.8 else first, dice.choice([*tenants, None]))
        for agent in agents[:-1]
        for _ in range(dice.randint(1, 4))
    ]
    events = [
        Event(
            key=f"key-{number}",
            occurred_at=dice.choice(owners)[1] if dice.random() < 0.02 else instant(),
            tenant=dice.choice(tenants),
            tokens=dice.choice([0, 1, 4000, 2**40]) + 0,
            token_type=dice.choice(labels),
            operation=dice.choice(operations),
            model=dice.choice(["gpt-4o", "text-embedding-3-large", None, ""]),
            agent=dice.choice(agents) if dice.random() < 0.5 else None,
        )
        for number in range(size)
    ]
    voids = [(event.tenant, event.key) for event in events if dice.random() < 0.02] + [
        ("tenant-0", "never sent")
    ]
    return {"events": events, "voids": voids, "owners": owners}
