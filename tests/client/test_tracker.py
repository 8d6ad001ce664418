"""The functions that services call, against a real server."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from tests.support.bad_events import BAD, GOOD
from tests.support.databases import Database
from token_tracking import (
    InvalidUsageError,
    NotDurableError,
    SettingsError,
    TrackerStats,
    UsageConflictError,
    UsageEvent,
    UsageTracker,
    usage_context,
)
from token_tracking.event.fields import EVENT_FIELDS

EVENTS = "select tenant_id, tokens, operation from token_tracking_raw.usage_events order by 1, 2"
REASONS = "select reason from token_tracking_raw.usage_event_rejections"


@pytest.fixture
def database(emptied: Database) -> Database:
    return emptied


@pytest.fixture
def tracker(database: Database):
    with UsageTracker(dsn=database.url) as started:
        yield started


def stats(**counts: int) -> TrackerStats:
    none = dict.fromkeys(TrackerStats.__dataclass_fields__, 0) | {"flushed": {}}
    return TrackerStats(**{**none, **counts})


def test_calls_of_today_run_unchanged(database: Database):
    """Called like in services: from `common.tracking`, in a separate process."""
    script = """
import asyncio
from uuid import UUID
from common.tracking import OPERATION_QUERY, TOKEN_TYPE_LLM, track_token_usage

async def main():
    tenant_id, token_count = UUID(int=7), 150
    assert await track_token_usage(
        tenant_id=tenant_id, tokens=token_count, token_type="llm", operation="query"
    ) is True
    assert await track_token_usage(
        tenant_id=tenant_id,
        tokens=token_count,
        token_type=TOKEN_TYPE_LLM,
        operation=OPERATION_QUERY,
    ) is True
    operation_id, retry_count = "op-1", 0
    for _ in range(3):
        assert await track_token_usage(
            tenant_id=tenant_id, tokens=40, token_type="llm", operation="query",
            idempotency_key=f"{operation_id}_{tenant_id}_{retry_count}",
        ) is True
    assert await track_token_usage(
        tenant_id, 60, "gpt-4o", UUID(int=8), "talk", "books", "embedding", "vector_search",
        {
            "collection_id": "books", "document_ids": ["d1", "d2"], "query_strategy": "hybrid",
            "operation_id": operation_id, "execution_time_ms": 12.5,
        },
        "positional",
    ) is True

asyncio.run(main())
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={"TOKEN_TRACKING_DSN": database.url, "PYTHONPATH": ":".join(sys.path)},
        check=True,
        timeout=60,
    )
    count = "select count(*)::int, sum(tokens)::int from token_tracking_raw.usage_events"
    assert database.rows(count) == [(4, 150 + 150 + 40 + 60)]
    key = f"op-1_{UUID(int=7)}_0"
    once = "select tokens from token_tracking_raw.usage_events where idempotency_key = %s"
    assert database.rows(once, (key,)) == [(40,)]
    everything = (
        "select tenant_id, tokens, model, agent_id, conversation_id, collection_id, token_type,"
        " operation, metadata from token_tracking_raw.usage_events"
        " where idempotency_key = 'positional'"
    )
    assert database.rows(everything) == [
        (
            str(UUID(int=7)),
            60,
            "gpt-4o",
            str(UUID(int=8)),
            "talk",
            "books",
            "embedding",
            "vector_search",
            {
                "collection_id": "books",
                "document_ids": ["d1", "d2"],
                "query_strategy": "hybrid",
                "operation_id": "op-1",
                "execution_time_ms": 12.5,
            },
        )
    ]


def test_each_call_ends_in_exactly_one_way(database: Database, tracker: UsageTracker):
    async def main() -> None:
        track = tracker.track_token_usage
        assert await track("a", 1, idempotency_key="k") is True
        assert await track("a", 1, idempotency_key="k") is True
        assert await track("a", 2, idempotency_key="k") is False
        assert await track("a", -1) is False
        assert await track("a", 0) is True
        assert await track(None, None) is True

    asyncio.run(main())
    assert tracker.stats() == stats(recorded=1, duplicate=1, conflict=1, rejected=1, no_op=2)
    assert database.rows(EVENTS) == [("a", 1, "query")]
    kept = "select tokens from token_tracking_raw.usage_event_conflicts"
    assert database.rows(kept) == [(2,)]


# One of each field; the rules themselves are tested where they are.
BAD_CALLS = {field: name for name, (_, field) in BAD.items() if field != "metadata"}


@pytest.mark.parametrize("name", BAD_CALLS.values())
def test_a_bad_call_is_told_false_logged_and_kept(
    database: Database, tracker: UsageTracker, caplog: pytest.LogCaptureFixture, name: str
):
    fields, field = BAD[name]
    event = {**GOOD, **fields}
    if not event.keys() <= set(EVENT_FIELDS):  # not an argument of any call
        told = asyncio.run(tracker.track_many([event]))
        assert told == [False]
    else:
        assert asyncio.run(tracker.track_token_usage(**event)) is False
    [(reason,)] = database.rows(REASONS)
    assert reason.startswith(f"{field}: ")
    assert reason in caplog.text
    assert database.rows(EVENTS) == []
    assert tracker.stats() == stats(rejected=1)


def test_parts_alone_are_summed_and_zeros_are_an_event(database: Database, tracker: UsageTracker):
    track = tracker.track_token_usage_sync
    assert track("a", input_tokens=3, output_tokens=4) is True
    assert track("b", None, output_tokens=4) is True
    assert track("c", 0, input_tokens=0) is True
    assert track("d", False) is False
    tokens = (
        "select tenant_id, tokens, input_tokens from token_tracking_raw.usage_events order by 1"
    )
    assert database.rows(tokens) == [("a", 7, 3), ("b", 4, None), ("c", 0, 0)]


def test_track_many_answers_in_order_for_any_number(database: Database, tracker: UsageTracker):
    def events():
        for number in range(1, 4501):
            bad = number % 1000 == 0
            yield {
                "tenant_id": "" if bad else "a",
                "tokens": number,
                "idempotency_key": f"{number}",
            }
        yield UsageEvent.model_validate({"tenant_id": "b", "tokens": 7})
        yield {"tenant_id": "b", "tokenz": 7}
        yield {"tenant_id": "b"}

    told = asyncio.run(tracker.track_many(events()))
    assert told == [number % 1000 != 0 for number in range(1, 4501)] + [True, False, True]
    total = "select count(*)::int from token_tracking_raw.usage_events"
    assert database.value(total) == 4500 - 4 + 1
    assert tracker.stats() == stats(recorded=4497, rejected=5, no_op=1)
    assert asyncio.run(tracker.track_many([])) == []


def test_the_same_usage_event_twice_counts_once(database: Database, tracker: UsageTracker):
    event = UsageEvent.model_validate({"tenant_id": "a", "tokens": 7})
    assert asyncio.run(tracker.track_many([event, event])) == [True, True]
    assert database.rows(EVENTS) == [("a", 7, "query")]
    assert tracker.stats() == stats(recorded=1, duplicate=1)


def test_what_is_no_event_is_kept_as_a_rejection(database: Database, tracker: UsageTracker):
    told = asyncio.run(tracker.track_many([5, None, "x", [], {"tenant_id": "a", "tokens": 1}]))
    assert told == [False, False, False, False, True]
    assert sorted(reason for (reason,) in database.rows(REASONS)) == [
        f"event: {kind}; must be an object" for kind in ("a number", "a string", "an array", "null")
    ]
    assert tracker.stats() == stats(recorded=1, rejected=4)
    assert tracker.track_many_sync(None) == [False]
    assert tracker.stats() == stats(recorded=1, rejected=5)


def test_a_finished_event_is_the_same_one_in_any_context(database: Database, tracker: UsageTracker):
    event = UsageEvent(tenant_id="a", tokens=5)
    with usage_context(agent_id="agent", conversation_id="c"):
        assert tracker.track_many_sync([event]) == [True]
    assert tracker.track_many_sync([event]) == [True]
    assert tracker.stats() == stats(recorded=1, duplicate=1)


def test_context_fills_what_a_call_leaves_out(database: Database, tracker: UsageTracker):
    async def child() -> None:
        with usage_context(conversation_id="inner", agent_id="agent"):
            await tracker.track_token_usage(tokens=1)
            await tracker.track_token_usage("own", 2, conversation_id="mine")

    async def main() -> None:
        with usage_context(tenant_id=UUID(int=3), conversation_id="outer"):
            await asyncio.gather(asyncio.create_task(child()))
            await tracker.track_token_usage(tokens=3)
        await tracker.track_token_usage(tokens=4)

    asyncio.run(main())
    assert database.rows(
        "select tokens, tenant_id, conversation_id, agent_id"
        " from token_tracking_raw.usage_events order by 1"
    ) == [
        (1, str(UUID(int=3)), "inner", "agent"),
        (2, "own", "mine", "agent"),
        (3, str(UUID(int=3)), "outer", None),
    ]
    assert "tenant_id: missing" in str(database.value(REASONS))


def test_voids_and_owners(database: Database, tracker: UsageTracker):
    start = datetime(2026, 1, 1, tzinfo=UTC)

    async def main() -> None:
        assert await tracker.void_usage("a", "k", "test call") is True
        assert await tracker.record_agent_owner(UUID(int=5), "acme", start) is True
        assert await tracker.record_agent_owner(UUID(int=5), None) is True
        assert await tracker.record_agent_owner("", "acme") is False
        assert await tracker.record_agent_owner("x", "acme", datetime(2026, 1, 1)) is False  # noqa: DTZ001
        assert await tracker.record_agent_owner("x", "acme", start - timedelta(days=9999)) is False
        assert await tracker.void_usage("a", "", "why") is False
        assert await tracker.void_usage("a\0", "k", "why") is False

    asyncio.run(main())
    assert tracker.void_usage_sync("a", "l", "why") is True
    assert tracker.record_agent_owner_sync("y", "acme") is True
    voids = "select idempotency_key from token_tracking_raw.usage_voids order by 1"
    assert database.rows(voids) == [("k",), ("l",)]
    owners = (
        "select owner_tenant_id from token_tracking_raw.agent_owners order by agent_id, valid_from"
    )
    assert database.rows(owners) == [("acme",), (None,), ("acme",)]
    fields = sorted(reason.partition(":")[0] for (reason,) in database.rows(REASONS))
    assert fields == ["agent_id", "idempotency_key", "tenant_id", "valid_from", "valid_from"]
    assert tracker.stats() == stats(recorded=5, rejected=5)


def test_from_many_loops_and_threads_at_once(database: Database, tracker: UsageTracker):
    def in_a_loop(name: str) -> None:
        async def main() -> None:
            calls = [tracker.track_token_usage(name, 1) for _ in range(200)]
            assert all(await asyncio.gather(*calls))

        asyncio.run(main())
        asyncio.run(main())

    def in_a_thread(name: str) -> None:
        assert all(tracker.track_token_usage_sync(name, 1) for _ in range(50))

    threads = [threading.Thread(target=in_a_loop, args=(f"loop-{n}",)) for n in range(4)]
    threads += [threading.Thread(target=in_a_thread, args=(f"thread-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = "select count(*)::int from token_tracking_raw.usage_events"
    assert database.value(total) == 4 * 400 + 4 * 50


def test_a_sync_call_inside_a_running_loop(tracker: UsageTracker):
    async def main() -> bool:
        return tracker.track_token_usage_sync("a", 1)

    assert asyncio.run(main()) is True


def test_an_awaiting_task_that_is_cancelled_loses_no_event(
    database: Database, tracker: UsageTracker
):
    async def main() -> None:
        calls = [asyncio.create_task(tracker.track_token_usage("a", 1)) for _ in range(300)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(main())
    tracker.close()
    total = "select count(*)::int from token_tracking_raw.usage_events"
    assert database.value(total) == 300


def test_on_error_raise_tells_what_a_false_would(database: Database):
    with UsageTracker(dsn=database.url, on_error="raise") as tracker:
        assert tracker.track_token_usage_sync("a", 1, idempotency_key="k") is True
        with pytest.raises(UsageConflictError, match="tokens: different from the event recorded"):
            tracker.track_token_usage_sync("a", 2, idempotency_key="k")
        with pytest.raises(InvalidUsageError, match="tokens: a negative number"):
            tracker.track_token_usage_sync("a", -2)
    with pytest.raises(NotDurableError, match="the tracker is closed"):
        tracker.track_token_usage_sync("a", 1)


def test_of_many_all_are_sent_before_the_first_error_is_raised(database: Database):
    events = [{"tenant_id": "a", "tokens": -1 if n in {0, 600} else 7} for n in range(1200)]
    with UsageTracker(dsn=database.url, on_error="raise") as tracker:
        with pytest.raises(InvalidUsageError, match="tokens: a negative number") as caught:
            tracker.track_many_sync(events)
        assert caught.value.told == [n not in {0, 600} for n in range(1200)]
        assert tracker.stats() == stats(recorded=1198, rejected=2)


@pytest.mark.timed
def test_without_a_database_a_call_is_spooled_in_time(
    caplog: pytest.LogCaptureFixture,
):
    tracker = UsageTracker(dsn="host=/nonexistent user=u password=canary-secret", max_wait=0.5)
    started = time.monotonic()
    assert tracker.track_token_usage_sync("a", 1, metadata={"secret": "canary-payload"}) is True
    assert time.monotonic() - started < 0.5 + 0.5  # and the imports of a first call
    tracker.close()
    assert "the database cannot be reached" in caplog.text
    assert "canary" not in caplog.text
    assert tracker.stats() == stats(spooled=1)


def test_with_neither_database_nor_spool_a_call_is_told_false(
    caplog: pytest.LogCaptureFixture,
):
    with UsageTracker(
        dsn="host=/nonexistent password=canary", max_wait=0.5, spool_dir="/proc/nowhere"
    ) as tracker:
        assert tracker.track_token_usage_sync("a", 1, "canary-model") is False
    assert "not known to be durable" in caplog.text
    assert "the spool folder /proc/nowhere cannot be used" in caplog.text
    assert "canary" not in caplog.text
    assert tracker.stats() == stats(refused=1)


def test_connections_that_break_are_replaced_and_lose_nothing(
    database: Database, tracker: UsageTracker
):
    cut = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity"
        " where application_name = 'token-tracking' and datname = current_database()"
    )

    async def main() -> list[bool]:
        told: list[bool] = []
        for round_ in range(5):
            calls = [tracker.track_token_usage("a", 1) for _ in range(100)]
            told += await asyncio.gather(*calls)
            assert database.value(cut) == 1, round_
        return told

    assert asyncio.run(main()) == [True] * 500
    total = "select count(*)::int from token_tracking_raw.usage_events"
    assert database.value(total) == 500
    assert tracker.stats().recorded == 500


def test_a_disabled_tracker_does_nothing_and_says_true(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKEN_TRACKING_ENABLED", "0")
    monkeypatch.setenv("TOKEN_TRACKING_MAX_WAIT", "broken, but of no interest")
    before = set(threading.enumerate())
    with UsageTracker(dsn="host=/nonexistent") as tracker:
        assert tracker.track_token_usage_sync("a", -1) is True
        assert asyncio.run(tracker.track_many([{}, {}])) == [True, True]
        assert set(threading.enumerate()) <= before
    assert tracker.stats() == stats(no_op=3)


def test_a_bad_setting_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKEN_TRACKING_MAX_WAIT", "canary")
    with pytest.raises(SettingsError, match=r"max_wait \(TOKEN_TRACKING_MAX_WAIT\)") as caught:
        UsageTracker()
    assert "canary" not in str(caught.value)


def test_the_modules_functions_never_raise_for_a_setting():
    script = (
        "from token_tracking import track_token_usage_sync as track\n"
        "assert track('a', 1) is False\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"TOKEN_TRACKING_MAX_WAIT": "soon", "PYTHONPATH": ":".join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "usage is not recorded: setting max_wait" in done.stderr


def test_what_waits_at_the_end_of_a_script_is_written(database: Database):
    script = """
import asyncio
from token_tracking import track_token_usage

async def main():
    for _ in range(200):
        asyncio.ensure_future(track_token_usage("a", 1))
    await asyncio.sleep(0)

asyncio.run(main())
"""
    subprocess.run(
        [sys.executable, "-c", script],
        env={"TOKEN_TRACKING_DSN": database.url, "PYTHONPATH": ":".join(sys.path)},
        check=True,
        timeout=60,
    )
    total = "select count(*)::int from token_tracking_raw.usage_events"
    assert database.value(total) == 200


def test_debug_tells_the_story_of_a_call_without_its_payload(
    database: Database, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    with UsageTracker(dsn=database.url) as tracker:
        tracker.track_token_usage_sync(
            "canary-tenant", 1, "canary-model", metadata={"canary": 1}, idempotency_key="key-1"
        )
    assert "call accepted as event key-1" in caplog.text
    assert "committed a batch of 1 event(s)" in caplog.text
    assert "canary" not in caplog.text


def test_importing_loads_neither_driver_nor_pydantic():
    script = """
import sys, time
started = time.perf_counter()
import token_tracking
from common.tracking import track_token_usage, TOKEN_TYPE_LLM
import threading
loaded = {"psycopg", "pydantic", "dbt", "typer"} & set(sys.modules)
assert not loaded, loaded
assert threading.active_count() == 1
print(time.perf_counter() - started)
"""
    subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=True,
        timeout=60,
    )


def test_common_stays_a_namespace_package(tmp_path, database: Database):
    """A service's own `common` package and this one work side by side."""
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "mine.py").write_text("value = 7")
    script = (
        "import common.mine, common.tracking\n"
        "assert common.mine.value == 7\n"
        "common.tracking.UsageEvent\n"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join([str(tmp_path), *sys.path])},
        check=True,
        timeout=60,
    )
