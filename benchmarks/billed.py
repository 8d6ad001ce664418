"""The events behind a number: one payer's day among ten million events."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

from .additions import fill
from .builds import Resident
from .harness.figures import Figure, spread

if TYPE_CHECKING:
    from .harness.bench import Bench, Database

EVENTS, PAYERS, DAYS, REPETITIONS = 10_000_000, 1_000, 31, 20
A_DAY = "'2026-03-20 00:00+00', '2026-03-21 00:00+00'"
SPREAD = (
    "timestamptz '2026-03-01 00:00:00+00'"
    f" + interval '{DAYS} days' * ((number % 999983) / 999983.0)"
)
# An agent has 15,000 events, of other requesters; its owner pays for them.
OWNERS = """
insert into token_tracking_raw.agent_owners (
    agent_id, valid_from, revision, owner_tenant_id, recorded_by
)
select 'agent-' || number, '2026-01-01', 1, 'tenant-' || (500 + number), 'bench'
from generate_series(0, 99) as number
"""
BY_TIME = """
select * from token_tracking.usage_events
where tenant_id = '{payer}' and occurred_at >= {starts} and occurred_at < {ends}
"""


def run(bench: Bench) -> list[Figure]:
    """Measure row 17b: for a payer of its own calls, and for one who also owns an agent."""
    database = bench.database()
    fill(database, EVENTS, "past", PAYERS, SPREAD)
    database.run(OWNERS)
    database.run("vacuum analyze")
    with Resident(database, bench.folder / database.env["PGDATABASE"]) as dbt:
        dbt.seconds("run")
    starts, ends = A_DAY.split(", ")
    figures: list[Figure] = []
    for payer, who in (("tenant-7", "alone"), ("tenant-507", "with an agent")):
        ours = milliseconds(
            database, f"select * from token_tracking.billed_events('{payer}', {A_DAY})"
        )
        by_time = milliseconds(database, BY_TIME.format(payer=payer, starts=starts, ends=ends))
        figures.append(
            Figure(
                "17b",
                f"billed_events, a day of one of {PAYERS:,} payers {who}, of {EVENTS:,}",
                spread(ours, "ms", 1),
                f"the view by time: {spread(by_time, 'ms', 1)}",
                sorted(ours)[len(ours) // 2],
                "≤",
                20,
                " ms",
            )
        )
    return figures


def milliseconds(database: Database, query: str) -> list[float]:
    """Return how long a query took each time, as a client sees it."""
    taken: list[float] = []
    with closing(database.connect()) as connection:
        for _ in range(REPETITIONS + 1):
            started = time.perf_counter()
            rows = connection.execute(query).fetchall()  # type: ignore[arg-type]
            taken.append((time.perf_counter() - started) * 1000)
            assert rows
    return taken[1:]
