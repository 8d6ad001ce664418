"""Every event sent a second time: nothing is recorded, and almost nothing is written."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from token_tracking import UsageTracker

from .calls import timed_calls
from .harness import peers, workload
from .harness.figures import Figure, median_ratio, spread

if TYPE_CHECKING:
    from .harness.bench import Bench

EVENTS, REPETITIONS = 30_000, 5
BATCH = "select * from token_tracking_raw.track_token_usage_batch(%s::json)"
WRITTEN = "select pg_current_wal_insert_lsn() - '0/0'"


def run(bench: Bench) -> list[Figure]:
    """Measure row 5: by awaited calls, and by the procedure alone."""
    database = bench.database()
    new: list[float] = []
    again: list[float] = []
    procedure_new: list[float] = []
    procedure_again: list[float] = []
    written: list[float] = []
    with closing(database.connect()) as connection, UsageTracker(dsn=database.url) as tracker:
        for repetition in range(REPETITIONS + 1):
            events = workload.events(EVENTS, repetition, only_new=True)
            marks = [database.value(WRITTEN)]
            new.append(EVENTS / timed_calls(tracker, events, 1000)[0])
            marks.append(database.value(WRITTEN))
            again.append(EVENTS / timed_calls(tracker, events, 1000)[0])
            marks.append(database.value(WRITTEN))
            written.append(100 * float(marks[2] - marks[1]) / float(marks[1] - marks[0]))

            batches = workload.batches(workload.events(EVENTS, 100 + repetition, only_new=True))
            procedure_new.append(EVENTS / peers.timed(connection, BATCH, batches))
            procedure_again.append(EVENTS / peers.timed(connection, BATCH, batches))
    new, again, written = new[1:], again[1:], written[1:]
    procedure_new, procedure_again = procedure_new[1:], procedure_again[1:]
    return [
        Figure(
            "5", "duplicates, calls", spread(again, "events/s"), f"new: {spread(new, 'events/s')}",
            median_ratio(again, new), "≥", 1.5,
        ),
        Figure(
            "5", "duplicates, procedure", spread(procedure_again, "events/s"),
            f"new: {spread(procedure_new, 'events/s')}",
            median_ratio(procedure_again, procedure_new), "≥", 1.5,
        ),
        Figure(
            "5", "WAL of the duplicates", spread(written, "%", 2), "", max(written), "≤", 2, " %",
        ),
    ]  # fmt: skip
