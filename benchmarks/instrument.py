"""Instrumented clients: the time that tracking adds to a call of the openai library."""

from __future__ import annotations

import asyncio
import gc
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from openai import AsyncOpenAI, OpenAI

from token_tracking import UsageTracker, instrument, usage_context

from .harness.figures import Figure, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .harness.bench import Bench

CALLS, REPETITIONS, AT_ONCE, IN_TURN = 1_000, 5, 8, 20
_ROOT = Path(__file__).parents[1]
# In a process of its own: a thread of this one would take turns with the clients.
_SERVER = """
from tests.support.provider_server import provider_server
for server in provider_server():
    print(server.url, flush=True)
    input()
"""


@contextmanager
def provider() -> Iterator[str]:
    """Run the local provider; yield its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.communicate("\n")


def asked(number: int, *, stream: bool) -> dict[str, object]:
    """Return the arguments of a call."""
    messages = [{"role": "user", "content": f"{number}-{time.time_ns()}"}]
    return {"model": "gpt-4o", "messages": messages, "stream": stream}


def took(client: OpenAI, number: int, *, stream: bool) -> float:
    """Return the seconds of one call, to the end of its stream."""
    before = time.perf_counter()
    answer = client.chat.completions.create(**asked(number, stream=stream))  # type: ignore[call-overload]
    if stream:
        for _ in answer:
            pass
    return time.perf_counter() - before


async def took_async(client: AsyncOpenAI, number: int) -> float:
    """Return the seconds of one call."""
    before = time.perf_counter()
    await client.chat.completions.create(**asked(number, stream=False))  # type: ignore[call-overload]
    return time.perf_counter() - before


def pairs(plain: OpenAI, tracked: OpenAI, *, stream: bool) -> tuple[list[float], list[float]]:
    """Call both in turn; return the seconds of each call of the one and of the other.

    Several calls of each: the event of the last one may be written during a call of the other.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for first in range(0, CALLS, IN_TURN):
        for client, into in zip((plain, tracked), times, strict=True):
            into.extend(took(client, first + n, stream=stream) for n in range(IN_TURN))
    return times


def pairs_at_once(url: str, tracker: UsageTracker) -> tuple[list[float], list[float]]:
    """Do the same with several tasks that call at the same time."""

    async def main() -> tuple[list[float], list[float]]:
        times: tuple[list[float], list[float]] = ([], [])
        async with (
            AsyncOpenAI(base_url=url, api_key="-") as plain,
            AsyncOpenAI(base_url=url, api_key="-") as tracked,
        ):
            instrument(tracked, tenant_id="bench", tracker=tracker)
            for first in range(0, CALLS, AT_ONCE):
                numbers = range(first, first + AT_ONCE)
                for client, into in zip((plain, tracked), times, strict=True):
                    into.extend(await asyncio.gather(*[took_async(client, n) for n in numbers]))
        return times

    return asyncio.run(main())


def added(measure: Callable[[], tuple[list[float], list[float]]]) -> tuple[list[float], str, str]:
    """Return the milliseconds added at p99 in each repetition, and both p99 in words."""
    differences: list[float] = []
    both: tuple[list[float], list[float]] = ([], [])
    for repetition in range(REPETITIONS + 1):
        gc.collect()
        p99 = [statistics.quantiles(times, n=100)[98] * 1000 for times in measure()]
        if repetition:  # the first one warms up
            differences.append(p99[1] - p99[0])
            both[0].append(p99[0])
            both[1].append(p99[1])
    return differences, spread(both[1], "ms", 2), f"not tracked: {spread(both[0], 'ms', 2)}"


def run(bench: Bench) -> list[Figure]:
    """Measure row 20: the same calls of two clients in turn, with and without tracking."""
    figures: list[Figure] = []
    with (
        provider() as address,
        UsageTracker(dsn=bench.database().url) as tracker,
        usage_context(tenant_id="bench"),
    ):
        url = f"{address}/v1"
        with OpenAI(base_url=url, api_key="-") as plain, OpenAI(base_url=url, api_key="-") as own:
            instrument(own, tracker=tracker)
            for name, measure in (
                ("a call", lambda: pairs(plain, own, stream=False)),
                ("a stream", lambda: pairs(plain, own, stream=True)),
                (f"{AT_ONCE} awaited calls at once", lambda: pairs_at_once(url, tracker)),
            ):
                differences, ours, peer = added(measure)
                figures.append(
                    Figure(
                        "20", f"added at p99 to {name}", ours, peer,
                        statistics.median(differences), "≤", 1, " ms",
                    )
                )  # fmt: skip
        tracker.close()
        stats = tracker.stats()
        expected = 3 * (REPETITIONS + 1) * CALLS
        if stats.recorded != expected or stats.cut_streams:
            message = f"{stats} instead of {expected} recorded events"
            raise RuntimeError(message)
    return figures
