"""Time from a call's answer to the day's total, with `refresh --every 1s` at 2,000 events/s."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from token_tracking import UsageTracker

from . import additions
from .harness import past, workload
from .harness.figures import Figure, spread

if TYPE_CHECKING:
    from .harness.bench import Bench, Database

ROOT = Path(__file__).parents[1]
PAST, RATE, SECONDS, WARM_UP, PATIENCE = 1_000_000, 2_000, 60, 15, 60
# The end of an hour of 2,000 events/s, which the measured calls pass in the middle.
FULL, ENDS = 7_000_000, datetime(2026, 3, 10, 13, tzinfo=UTC)
MARKED = "select tenant_id from token_tracking.daily_token_usage where tenant_id like 'mark-%'"


def run(bench: Bench) -> list[Figure]:
    """Measure rows 12 and 18."""
    usual, full = bench.database(), bench.database()
    past.fill(usual, PAST)
    additions.fill(full, FULL, "past", occurred_at=additions.HOUR)
    full.run("vacuum analyze")
    return [
        _p95("12", f"acknowledged to daily total, {RATE:,} events/s", 5, bench, usual, None),
        _p95("18", f"the same over the end of an hour of {FULL:,}", 2, bench, full, ENDS),
    ]


def _p95(
    row: str, measure: str, target: float, bench: Bench, database: Database, ends: datetime | None
) -> Figure:
    """Measure one row, with calls that occur now, or around the end of an hour."""
    refresh = subprocess.Popen(
        [Path(sys.executable).with_name("token-tracking"), "refresh", "--every", "1s"],
        cwd=ROOT,
        env={**os.environ, **database.env},
        stdout=(bench.folder / f"refresh-{row}.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        _first_build(database, refresh)
        lags = asyncio.run(_measured(database, ends))
    finally:
        refresh.send_signal(signal.SIGTERM)
        refresh.wait(60)
    p95 = statistics.quantiles(lags, n=20)[18]
    return Figure(row, measure, spread(lags, "s", 2), "", p95, "≤", target, " s (p95)")


def _first_build(database: Database, refresh: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while (
        database.value("select count(*) from pg_tables where tablename = 'daily_token_usage'") == 0
    ):
        if refresh.poll() is not None or time.monotonic() > deadline:
            message = "refresh made no first build"
            raise RuntimeError(message)
        time.sleep(0.5)


async def _measured(database: Database, end_of_hour: datetime | None) -> list[float]:
    acknowledged: dict[str, float] = {}
    seen: dict[str, float] = {}
    ends = time.monotonic() + SECONDS
    middle = ends - SECONDS / 2

    def occurred_at() -> dict[str, datetime]:
        if end_of_hour is None:
            return {}
        return {"occurred_at": end_of_hour + timedelta(seconds=time.monotonic() - middle)}

    async def write(tracker: UsageTracker) -> None:
        seed = 0
        while time.monotonic() < ends:
            seed += 1
            due = time.monotonic() + 0.1
            part = workload.events(RATE // 10, seed)
            at = occurred_at()
            await asyncio.gather(*(tracker.track_token_usage(**{**event, **at}) for event in part))  # type: ignore[arg-type]
            # One call of each tenth of a second has a tenant of its own, by which it is found.
            mark = f"mark-{seed}"
            assert await tracker.track_token_usage(mark, 1, **at)
            acknowledged[mark] = time.monotonic()
            await asyncio.sleep(max(0, due - time.monotonic()))

    async def read() -> None:
        with closing(database.connect()) as connection:
            while time.monotonic() < ends + PATIENCE and (
                time.monotonic() < ends or len(seen) < len(acknowledged)
            ):
                rows = await asyncio.to_thread(lambda: connection.execute(MARKED).fetchall())
                now = time.monotonic()
                for (mark,) in rows:
                    seen.setdefault(mark, now)
                await asyncio.sleep(0.1)

    async with UsageTracker(dsn=database.url) as tracker:
        await asyncio.gather(write(tracker), read())
    if missing := acknowledged.keys() - seen.keys():
        message = f"{len(missing)} of {len(acknowledged)} calls came into no daily total"
        raise RuntimeError(message)
    first = min(acknowledged.values())
    return [seen[mark] - at for mark, at in acknowledged.items() if at > first + WARM_UP]
