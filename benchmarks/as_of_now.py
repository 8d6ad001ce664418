"""Totals as of now: a payer's day, ten thousand events after a build of ten million."""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from typing import TYPE_CHECKING

from .additions import fill, filled
from .harness.figures import Figure, spread

if TYPE_CHECKING:
    from .harness.bench import Bench

PAST, PAYERS, NEW, REPETITIONS = 10_000_000, 1_000, 10_000, 30
# Thirty days; the newest of them is the tenth of March.
A_MONTH = (
    "timestamptz '2026-03-11 00:00:00+00'"
    " - interval '30 days' * ((hashint8(number)::bigint & 4194303) / 4194304.0)"
)
QUERY = (
    "select * from token_tracking.daily_token_usage_now"
    " where tenant_id = 'tenant-7' and usage_date = '2026-03-10'"
)


def run(bench: Bench) -> list[Figure]:
    """Measure row 17."""
    seconds = []
    with filled(bench, PAST, PAYERS, A_MONTH) as dbt:
        fill(dbt.database, NEW, "new", PAYERS)
        with closing(dbt.database.connect()) as connection:
            for _ in range(REPETITIONS + 5):
                started = time.perf_counter()
                rows = connection.execute(QUERY).fetchall()
                seconds.append(time.perf_counter() - started)
                assert rows
    milliseconds = [1000 * second for second in seconds[5:]]
    return [
        Figure(
            "17", f"a payer's day, {NEW:,} new in {PAST:,}", spread(milliseconds, "ms", 1),
            "", statistics.median(milliseconds), "≤", 50, " ms",
        ),
    ]  # fmt: skip
