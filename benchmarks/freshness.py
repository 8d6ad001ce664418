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
from pathlib import Path
from typing import TYPE_CHECKING

from token_tracking import UsageTracker

from .harness import past, workload
from .harness.figures import Figure, spread

if TYPE_CHECKING:
    from .harness.bench import Bench, Database

ROOT = Path(__file__).parents[1]
PAST, RATE, SECONDS, WARM_UP, PATIENCE = 1_000_000, 2_000, 60, 15, 60
MARKED = "select tenant_id from token_tracking.daily_token_usage where tenant_id like 'mark-%'"


def run(bench: Bench) -> list[Figure]:
    """Measure row 12."""
    database = bench.database()
    past.fill(database, PAST)
    refresh = subprocess.Popen(
        [Path(sys.executable).with_name("token-tracking"), "refresh", "--every", "1s"],
        cwd=ROOT,
        env={**os.environ, **database.env},
        stdout=(bench.folder / "refresh.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        _first_build(database, refresh)
        lags = asyncio.run(_measured(database))
    finally:
        refresh.send_signal(signal.SIGTERM)
        refresh.wait(60)
    p95 = statistics.quantiles(lags, n=20)[18]
    return [
        Figure(
            "12",
            f"acknowledged to daily total, {RATE:,} events/s",
            spread(lags, "s", 2),
            "",
            p95,
            "≤",
            5,
            " s (p95)",
        )
    ]


def _first_build(database: Database, refresh: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while (
        database.value("select count(*) from pg_tables where tablename = 'daily_token_usage'") == 0
    ):
        if refresh.poll() is not None or time.monotonic() > deadline:
            message = "refresh made no first build"
            raise RuntimeError(message)
        time.sleep(0.5)


async def _measured(database: Database) -> list[float]:
    acknowledged: dict[str, float] = {}
    seen: dict[str, float] = {}
    ends = time.monotonic() + SECONDS

    async def write(tracker: UsageTracker) -> None:
        seed = 0
        while time.monotonic() < ends:
            seed += 1
            due = time.monotonic() + 0.1
            part = workload.events(RATE // 10, seed)
            await asyncio.gather(*(tracker.track_token_usage(**event) for event in part))  # type: ignore[arg-type]
            # One call of each tenth of a second has a tenant of its own, by which it is found.
            mark = f"mark-{seed}"
            assert await tracker.track_token_usage(mark, 1)
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
