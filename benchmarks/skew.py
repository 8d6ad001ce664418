"""Four processes write 90 % of the events for one tenant, compared with an even distribution."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from .harness import workload
from .harness.figures import Figure, median_ratio, spread

if TYPE_CHECKING:
    from .harness.bench import Bench, Database

PROCESSES, EVENTS, CALLERS, REPETITIONS = 4, 10_000, 250, 5

WORKER = """
import asyncio, datetime, json, logging, sys
from token_tracking import UsageTracker
from benchmarks.calls import timed_calls
logging.disable(logging.WARNING)
events = json.loads(sys.stdin.readline())
for event in events:
    event["occurred_at"] = datetime.datetime.fromisoformat(event["occurred_at"])
with UsageTracker(dsn=sys.argv[1]) as tracker:
    print("ready", flush=True)
    sys.stdin.read()  # all start when their input ends
    print(json.dumps(timed_calls(tracker, events, int(sys.argv[2]))[0]))
"""


def run(bench: Bench) -> list[Figure]:
    """Measure row 6."""
    database = bench.database()
    even: list[float] = []
    skewed: list[float] = []
    for repetition in range(REPETITIONS + 1):
        even.append(_together(database, 2 * repetition, hot_tenant=0))
        skewed.append(_together(database, 2 * repetition + 1, hot_tenant=0.9))
    even, skewed = even[1:], skewed[1:]
    deadlocks = database.value(
        "select deadlocks from pg_stat_database where datname = current_database()"
    )
    return [
        Figure(
            "6", "90 % in one tenant", spread(skewed, "events/s"),
            f"even: {spread(even, 'events/s')}", median_ratio(skewed, even), "≥", 0.9,
        ),
        Figure("6", "deadlocks", f"{deadlocks}", "", deadlocks, "≤", 0),
    ]  # fmt: skip


def _together(database: Database, seed: int, *, hot_tenant: float) -> float:
    # One list for all four: the retries of one are calls that another one made.
    events = workload.events(PROCESSES * EVENTS, seed, hot_tenant=hot_tenant)
    workers: list[subprocess.Popen[str]] = []
    for place in range(PROCESSES):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, database.url, str(CALLERS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert worker.stdin is not None
        json.dump(events[place::PROCESSES], worker.stdin, default=lambda value: value.isoformat())
        print(file=worker.stdin, flush=True)
        workers.append(worker)
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
    seconds = [json.loads(worker.stdout.read()) for worker in workers if worker.stdout]
    for worker in workers:
        assert worker.wait() == 0
    return PROCESSES * EVENTS / max(seconds)
