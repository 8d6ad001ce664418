"""Calls under trio, under anyio on top of it, and under an unknown library."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime

import anyio
import pytest
import trio

from tests.support.databases import Database
from tests.support.proxy import Proxy, socket_path
from tests.support.waiting import ended, until
from token_tracking import NotDurableError, UsageTracker
from token_tracking.client import runtimes

EVENTS = "select count(*)::int from token_tracking_raw.usage_events"


def anyio_on_trio(main: Callable[[], Coroutine[object, object, object]]) -> object:
    return anyio.run(main, backend="trio")


@pytest.mark.parametrize("run", [trio.run, anyio_on_trio, anyio.run])
def test_every_call_is_answered_under_each_library(emptied: Database, run: Callable):
    async def main() -> None:
        async with UsageTracker(dsn=emptied.url) as tracker:
            assert await tracker.track_token_usage("a", 7) is True
            assert await tracker.track_token_usage("a", -1) is False
            events = ({"tenant_id": "a", "tokens": n} for n in range(1, 1502))
            assert await tracker.track_many(events) == [True] * 1501
            assert await tracker.record_agent_owner("g", "a", datetime(2026, 1, 1, tzinfo=UTC))
            assert await tracker.void_usage("a", "k", "why") is True
            stats = tracker.stats()
        assert (stats.recorded, stats.rejected, stats.refused) == (1504, 1, 0)
        assert await tracker.track_token_usage("a", 1) is False

    run(main)
    assert emptied.value(EVENTS) == 1502


def test_a_cancelled_scope_of_trio_loses_no_event(emptied: Database):
    async def main() -> None:
        with UsageTracker(dsn=emptied.url) as tracker:
            with trio.CancelScope() as scope:
                scope.cancel()
                await tracker.track_token_usage("a", 7)
            assert scope.cancelled_caught
            with trio.move_on_after(0):
                await tracker.track_many([{"tenant_id": "a", "tokens": 7}])

    trio.run(main)
    assert emptied.value(EVENTS) == 2


def test_many_tasks_of_trio_wait_for_one_batch(emptied: Database):
    answers: list[bool] = []

    async def main() -> None:
        async def call() -> None:
            answers.append(await tracker.track_token_usage("a", 7))

        with UsageTracker(dsn=emptied.url) as tracker:
            async with trio.open_nursery() as nursery:
                for _ in range(500):
                    nursery.start_soon(call)

    trio.run(main)
    assert answers == [True] * 500
    assert emptied.value(EVENTS) == 500


@pytest.mark.timed
def test_a_silent_server_holds_no_task_of_trio(emptied: Database):
    proxy = Proxy(socket_path(emptied.env["PGHOST"]))
    proxy.silent = True
    longest = 0.0

    async def main() -> None:
        async def beat() -> None:
            nonlocal longest
            while True:
                before = time.perf_counter()
                await trio.sleep(0.005)
                longest = max(longest, time.perf_counter() - before)

        tracker = UsageTracker(dsn=proxy.dsn(emptied.env["PGDATABASE"]), max_wait=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat)
            assert await tracker.track_token_usage("a", 7) is True
            await tracker.aclose(0.5)
            nursery.cancel_scope.cancel()

    trio.run(main)
    proxy.close()
    assert longest < 0.2


def test_a_run_of_trio_that_is_over_breaks_no_other_answer(emptied: Database):
    with UsageTracker(dsn=emptied.url) as tracker:
        futures: list[object] = []

        async def main() -> None:
            futures.append(runtimes.new_future())

        trio.run(main)
        [future] = futures
        future.set_result(None)  # type: ignore[attr-defined]
        assert tracker.track_token_usage_sync("a", 7) is True


@pytest.mark.parametrize("on_error", ["return", "raise"])
def test_what_nobody_can_wait_for_is_told_at_once_and_sent(
    emptied: Database, caplog: pytest.LogCaptureFixture, on_error: str
):
    """A coroutine that is driven by hand, as by an unknown library."""

    def by_hand(coroutine: Coroutine[object, object, object]) -> object:
        try:
            coroutine.send(None)
        except StopIteration as done:
            return done.value
        raise AssertionError("it was suspended")

    with UsageTracker(dsn=emptied.url, on_error=on_error) as tracker:
        calls = (
            lambda: tracker.track_token_usage("a", 7),
            lambda: tracker.track_many([{"tenant_id": "a", "tokens": 7}]),
            lambda: tracker.void_usage("a", "k", "why"),
        )
        for call in calls:
            if on_error == "raise":
                with pytest.raises(NotDurableError, match="neither asyncio nor trio"):
                    by_hand(call())
            else:
                assert by_hand(call()) in (False, [False])
        until(lambda: tracker.stats().recorded == 3, 5, "all are sent")
        assert ended(tracker.stats()) == 3
        by_hand(tracker.aclose())
    assert emptied.value(EVENTS) == 2
    assert caplog.text.count("neither asyncio nor trio") == 3


def test_a_call_beside_trio_blocks_its_own_thread_alone(emptied: Database):
    async def main() -> None:
        with UsageTracker(dsn=emptied.url) as tracker:
            answer = await trio.to_thread.run_sync(
                lambda: asyncio.run(tracker.track_token_usage("a", 7))
            )
            assert answer is True
            assert tracker.track_token_usage_sync("a", 7) is True

    trio.run(main)
    assert emptied.value(EVENTS) == 2


def test_lines_of_callers_name_who_logs(caplog: pytest.LogCaptureFixture):
    """Another thread writes the lines, in the caller's context."""
    tracker = UsageTracker(dsn="host=/nonexistent")
    tracker.close()
    caplog.set_level(logging.ERROR)
    assert tracker.track_token_usage_sync("a", 7) is False
    until(lambda: len(caplog.records) == 1, 2, "it is written")
    [record] = caplog.records
    assert record.threadName == threading.current_thread().name
    assert (record.name, record.module) == ("token_tracking.tracker", "complaints")
