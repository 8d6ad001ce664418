"""Changes of the server's clock while events are being sent: back, forward, while connected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.arena import lasting_database
from tests.support.clock import Clock
from tests.support.databases import NOT_DURABLE, Database, debian_15, started_server
from tests.support.waiting import ended, until
from token_tracking import UsageTracker
from token_tracking.cli import app
from token_tracking.client.connection import Connection
from token_tracking.client.recovery import flush
from token_tracking.client.requests import Outcome
from token_tracking.client.spool.spool import Spool
from token_tracking.event.rules import canonical_time

EVENTS = "select count(*)::int from token_tracking_raw.usage_events"
REJECTED = "select count(*)::int from token_tracking_raw.usage_event_rejections"


@pytest.fixture(scope="module")
def faked_server(clock: Clock) -> Iterator[Database]:
    settings = {**NOT_DURABLE, "shared_preload_libraries": ""}
    for server in started_server(clock.programs(debian_15()), settings):
        yield lasting_database(server)


@pytest.fixture
def database(faked_server: Database, clock: Clock) -> Database:
    clock.set(0)
    with closing(faked_server.connect()) as connection:
        connection.execute(
            "truncate token_tracking_raw.usage_events, token_tracking_raw.usage_event_rejections"
        )
    return faked_server


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_tracking.client.recovery._LOOK_SECONDS", 0.5)


def spooled(folder: Path, count: int) -> Spool:
    """Return a spool with events of a tracker that had no database."""
    with UsageTracker(dsn="host=/nonexistent", max_wait=1, spool_dir=folder) as tracker:
        calls = ({"tenant_id": "a", "tokens": 1} for _ in range(count))
        assert sum(tracker.track_many_sync(calls)) == count
    [spool] = Spool.adopt(folder)
    return spool


def test_the_servers_clock_set_back_in_a_flush_refuses_nothing(
    database: Database, clock: Clock, tmp_path: Path
):
    spool = spooled(tmp_path / "other", 3000)
    with closing(Connection.open(database.url)) as connection:
        steps = flush(spool, connection)
        assert next(steps)[Outcome.RECORDED] == 500
        clock.set(-600)
        assert sum(step.total() for step in steps) == 0
        assert (database.value(EVENTS), database.value(REJECTED)) == (500, 0)
        assert len(spool.oldest(3000, 2**30)) == 2500
        clock.set(0)
        until(lambda: bool(list(flush(spool, connection))) and spool.is_empty(), 5)
    spool.close()
    assert (database.value(EVENTS), database.value(REJECTED)) == (3000, 0)


def test_a_clock_set_under_a_connection_refuses_nothing(
    database: Database, clock: Clock, caplog: pytest.LogCaptureFixture
):
    """Set back, calls are spooled and counted as early; set right, they are recorded again."""
    with UsageTracker(dsn=database.url) as tracker:
        assert tracker.track_token_usage_sync("a", 1) is True
        clock.set(-600)
        calls = [{"tenant_id": "a", "tokens": 1}] * 30
        old = {"tenant_id": "b", "tokens": 1, "occurred_at": "2026-01-01T00:00:00Z"}
        assert tracker.track_many_sync([*calls, old]) == [True] * 31
        assert tracker.track_token_usage_sync("a", 1) is True
        stats = tracker.stats()
        assert (stats.recorded, stats.spooled, stats.rejected) == (2, 31, 0)
        until(lambda: tracker.stats().early == 31, 5, "counted")
        assert "ahead of the database's clock" in caplog.text
        clock.set(0)
        until(lambda: tracker.stats().flushed == {"recorded": 31}, 10, "their time has come")
        until(lambda: tracker.stats().early == 0, 5)

        def is_recorded() -> bool:
            before = tracker.stats().recorded
            assert tracker.track_token_usage_sync("a", 1) is True
            return tracker.stats().recorded > before

        until(is_recorded, 5, "the connection knows the time again")
        assert ended(tracker.stats()) == sum((tracker.stats().recorded, tracker.stats().spooled))
    assert database.value(REJECTED) == 0
    assert database.value(f"{EVENTS} where tenant_id = 'b'") == 1


def test_a_clock_that_jumps_forth_and_back_loses_nothing(database: Database, clock: Clock):
    with UsageTracker(dsn=database.url) as tracker:
        for number, seconds in enumerate((3600, -900, 0, -310, 40, -86400, 0)):
            clock.set(seconds)
            calls = [
                {"tenant_id": "a", "tokens": 1, "idempotency_key": f"{number}-{one}"}
                for one in range(100)
            ]
            assert tracker.track_many_sync(calls) == [True] * 100
        until(lambda: database.value(EVENTS) == 700, 10, "all are in")
    assert database.value(REJECTED) == 0


def test_a_schema_that_knows_no_early_events_loses_none(
    database: Database, clock: Clock, tmp_path: Path
):
    """The server keeps rejections of the events; they are resent nevertheless."""
    with closing(database.connect()) as connection:
        [(source,)] = connection.execute(
            "select pg_get_functiondef('token_tracking_raw.track_token_usage_batch'::regproc)"
        ).fetchall()
        assert "keeps_early" in source
        connection.execute(source.replace("token_tracking.keeps_early", "token_tracking.unknown"))
        try:
            with UsageTracker(dsn=database.url) as tracker:
                assert tracker.track_token_usage_sync("a", 1) is True
                clock.set(-600)
                assert tracker.track_token_usage_sync("a", 1) is True
                assert (tracker.stats().spooled, tracker.stats().rejected) == (1, 0)
                clock.set(0)
                until(lambda: database.value(EVENTS) == 2, 10)
        finally:
            connection.execute(source)


def test_sql_callers_are_told_of_a_time_in_the_future(database: Database, clock: Clock):
    """The server rejects it with that reason, unless the client asks to keep early events."""
    now = canonical_time(datetime.now(UTC))
    clock.set(-600)
    one = '"tenant_id": "a", "tokens": 1'
    text = f'[{{{one}, "occurred_at": "{now}"}}, {{{one}}}]'
    batch = (
        "select recorded, rejected, problems from token_tracking_raw.track_token_usage_batch(%s)"
    )
    with closing(database.connect()) as connection:
        for kind, kept in (("rejection", 1), ("early", 1)):
            if kind == "early":
                connection.execute("set token_tracking.keeps_early = on")
            [(recorded, rejected, problems)] = connection.execute(batch, (text,)).fetchall()
            assert (recorded, rejected) == (1, 1)
            assert [problem["kind"] for problem in problems] == [kind]
            assert problems[0]["reason"].startswith("occurred_at: a time in the future")
            assert database.value(REJECTED) == kept


def test_a_load_says_that_the_servers_clock_is_behind(
    database: Database, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TOKEN_TRACKING_DSN", database.url)
    file = tmp_path / "usage.jsonl"
    file.write_text(
        f'{{"tenant_id": "a", "tokens": 1, "occurred_at": "{datetime.now(UTC).isoformat()}"}}\n'
        '{"tenant_id": "a", "tokens": 1, "occurred_at": "2026-01-01T00:00:00Z"}\n'
    )
    clock.set(-600)
    ended = CliRunner().invoke(app, ["load", str(file)])
    assert ended.exit_code == 3
    assert "ahead of the database's clock" in " ".join(ended.output.split())
    assert (database.value(EVENTS), database.value(REJECTED)) == (1, 0)
    clock.set(0)
    assert CliRunner().invoke(app, ["load", str(file)]).exit_code == 0
    assert database.value(EVENTS) == 2
