"""Awaited calls: one call per event, from many tasks of one process."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from token_tracking import UsageTracker

from .harness import peers, workload
from .harness.figures import Figure, median_ratio, spread

if TYPE_CHECKING:
    from .harness.bench import Bench
    from .harness.workload import Event

EVENTS, REPETITIONS = 30_000, 7
SINGLE_CALLS = 1_000
COUNTER_SECONDS = 4


async def calls(tracker: UsageTracker, events: list[Event], callers: int) -> list[float]:
    """Await a call for each event, from so many tasks; return what each took, in seconds."""
    waiting = iter(events)
    took: list[float] = []

    async def caller() -> None:
        for event in waiting:
            before = time.perf_counter()
            await tracker.track_token_usage(**event)  # type: ignore[arg-type]
            took.append(time.perf_counter() - before)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return took


def timed_calls(
    tracker: UsageTracker, events: list[Event], callers: int
) -> tuple[float, list[float]]:
    """Return the seconds of all calls together, and of each."""
    # The events themselves, which no service has in memory, are not ours to collect.
    gc.collect()
    gc.freeze()
    started = time.perf_counter()
    took = asyncio.run(calls(tracker, events, callers))
    return time.perf_counter() - started, took


async def longest_hold(tracker: UsageTracker, events: list[Event], callers: int) -> float:
    """Return how long the loop was held at most, without what it waited for a processor."""
    late: list[float] = []
    schedule = Path("/proc/thread-self/schedstat")

    def queued() -> float:
        return int(schedule.read_text().split()[1]) / 1e9 if schedule.exists() else 0.0

    async def heartbeat() -> None:
        while True:
            before, due = queued(), time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - due - (queued() - before))

    beating = asyncio.create_task(heartbeat())
    await calls(tracker, events, callers)
    beating.cancel()
    return max(late)


def run(bench: Bench) -> list[Figure]:
    """Measure rows 1 to 3; the first repetition of each warms up and does not count."""
    database = bench.database()
    database.run(peers.BARE_TABLE + ";" + peers.COUNTERS)
    many: list[float] = []
    bare: list[float] = []
    pipelined: list[float] = []
    counters: list[float] = []
    with closing(database.connect()) as connection, UsageTracker(dsn=database.url) as tracker:
        for repetition in range(REPETITIONS + 1):
            events = workload.events(EVENTS, repetition)
            batches = workload.batches(events)
            bare.append(EVENTS / peers.bare(connection, batches))
            many.append(EVENTS / timed_calls(tracker, events, 1000)[0])
            connection.execute("truncate bare")
            pipelined.append(EVENTS / peers.executemany(connection, events))
            if repetition < 3:
                counters.append(peers.counters(bench, database, COUNTER_SECONDS))

        single: list[float] = []
        insert: list[float] = []
        pooled: list[float] = []
        for seed in range(100, 108):
            events = workload.events(SINGLE_CALLS, seed, only_new=True)
            single.append(statistics.median(timed_calls(tracker, events, 1)[1]) * 1000)
            pooled.append(statistics.median(asyncio.run(peers.pooled(database.url, events))) * 1000)
            connection.execute("truncate bare")
            rows = workload.batches(events, 1)
            each = [peers.bare(connection, [row]) for row in rows]
            insert.append(statistics.median(each) * 1000)

        p99: list[float] = []
        held: list[float] = []
        for seed in range(200, 204):
            events = workload.events(EVENTS, seed)
            took = timed_calls(tracker, events, 256)[1]
            p99.append(statistics.quantiles(took, n=100)[98] * 1000)
            again = workload.events(EVENTS, seed + 100)
            gc.freeze()
            held.append(asyncio.run(longest_hold(tracker, again, 256)) * 1000)

    many, bare, pipelined, counters = many[1:], bare[1:], pipelined[1:], counters[1:]
    ratio = statistics.median(many) / statistics.median(counters)
    return [
        Figure(
            "1", "1,000 callers", spread(many, "events/s"), f"bare: {spread(bare, 'events/s')}",
            median_ratio(many, bare), "≥", 0.8,
        ),
        Figure(
            "1", "1,000 callers", spread(many, "events/s"),
            f"counters: {spread(counters, 'calls/s')}", ratio, "≥", 8,
        ),
        Figure(
            "1", "1,000 callers", spread(many, "events/s"),
            f"executemany: {spread(pipelined, 'events/s')}", median_ratio(many, pipelined), "≥", 1,
        ),
        Figure(
            "2", "one caller, p50", spread(single[1:], "ms", 2),
            f"bare: {spread(insert[1:], 'ms', 2)}", median_ratio(single[1:], insert[1:]), "≤", 1.5,
        ),
        Figure(
            "2", "one caller, p50", spread(single[1:], "ms", 2),
            f"psycopg_pool: {spread(pooled[1:], 'ms', 2)}", median_ratio(single[1:], pooled[1:]),
            "≤", 1,
        ),
        Figure(
            "3", "256 callers, p99", spread(p99[1:], "ms", 1), "", statistics.median(p99[1:]),
            "≤", 25, " ms",
        ),
        Figure(
            "3", "longest block of the event loop", spread(held[1:], "ms", 1), "",
            statistics.median(held[1:]), "≤", 5, " ms",
        ),
    ]  # fmt: skip
