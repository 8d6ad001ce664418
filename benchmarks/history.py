"""Calls into a table of twenty million events and into an empty one, and the disk space used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from token_tracking import UsageTracker

from .calls import timed_calls
from .harness import past, workload
from .harness.figures import Figure, median_ratio, spread

if TYPE_CHECKING:
    from .harness.bench import Bench

PAST, EVENTS, REPETITIONS, CALLERS = 20_000_000, 30_000, 5, 1_000
WEIGHED = 200_000


def run(bench: Bench) -> list[Figure]:
    """Measure rows 7 and 8."""
    full, empty, weighed = bench.database(), bench.database(), bench.database()
    past.fill(full, PAST)
    with UsageTracker(dsn=weighed.url) as tracker:
        for seed in range(WEIGHED // EVENTS + 1):
            timed_calls(tracker, workload.events(EVENTS, 500 + seed), CALLERS)
    size = weighed.value("select pg_total_relation_size('token_tracking_raw.usage_events')")
    count = weighed.value("select count(*) from token_tracking_raw.usage_events")

    there: list[float] = []
    beside: list[float] = []
    with UsageTracker(dsn=full.url) as big, UsageTracker(dsn=empty.url) as small:
        for repetition in range(REPETITIONS + 1):
            events = workload.events(EVENTS, repetition)
            beside.append(EVENTS / timed_calls(small, events, CALLERS)[0])
            there.append(EVENTS / timed_calls(big, events, CALLERS)[0])
    there, beside = there[1:], beside[1:]
    return [
        Figure(
            "7", "20 million events stored", spread(there, "events/s"),
            f"empty: {spread(beside, 'events/s')}", median_ratio(there, beside), "≥", 0.8,
        ),
        Figure(
            "8", "disk, indexes included", f"{size / count:.0f} bytes/event", "", size / count,
            "≤", 450, " bytes",
        ),
    ]  # fmt: skip
