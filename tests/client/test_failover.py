"""A failover from a primary to its standby: what is kept, and what calls are answered."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import NOT_DURABLE, Database, server_folder
from tests.support.project import DbtProject
from tests.support.waiting import until
from tests.support.warehouse import Event, Warehouse
from token_tracking import UsageTracker
from token_tracking.embedded.server import Server
from token_tracking.raw.schema import apply_schema

WAITING = "select pid from pg_stat_activity where wait_event = 'SyncRep'"
CANCEL = (
    "select count(pg_cancel_backend(pid))::int from pg_stat_activity where wait_event = 'SyncRep'"
)
REPLICAS = "select count(*)::int from pg_stat_replication where state = 'streaming'"
KEYS = "select idempotency_key from token_tracking_raw.usage_events"


@dataclass
class Pair:
    """A primary and its standby."""

    primary: Server
    standby: Server
    dsn: str = ""

    def start_standby(self) -> None:
        self.standby.start()
        self.dsn = f"host={self.primary.host},{self.standby.host} dbname=postgres user=postgres"
        until(lambda: value(self.primary, REPLICAS) == 1, what="the standby follows")

    def promote(self) -> Database:
        """Kill the primary and promote the standby."""
        self.primary.kill()
        if not self.standby.is_running():
            self.standby.start()
        value(self.standby, "select pg_promote()")
        return Database(self.standby.url("postgres"), self.standby.environment("postgres"))


def value(server: Server, query: str) -> object:
    with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
        cursor = connection.execute(query)  # type: ignore[arg-type]
        return cursor.fetchall()[0][0] if cursor.description else None


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A primary with an asynchronous standby."""
    folder = server_folder()
    primary = Server(folder / "a", settings=NOT_DURABLE)
    standby = Server(folder / "b", settings=NOT_DURABLE)
    pair = Pair(primary, standby)
    try:
        primary.start()
        with closing(psycopg.connect(primary.url("postgres"))) as connection:
            apply_schema(connection)
        subprocess.run(
            [
                *(primary.bin_dir / "pg_basebackup", "--checkpoint=fast", "--write-recovery-conf"),
                *("--host", primary.host, "--username=postgres", "--pgdata", standby.data_dir),
            ],
            check=True,
            capture_output=True,
        )
        for path in (standby.data_dir, *standby.data_dir.rglob("*")):
            shutil.chown(path, primary.data_dir.stat().st_uid)
        for path in standby.data_dir.glob(".s.PGSQL*"):
            path.unlink()
        pair.start_standby()
        yield pair
    finally:
        standby.stop("immediate")
        primary.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def synchronous(pair: Pair) -> Pair:
    """A primary with a synchronous standby."""
    value(pair.primary, "alter system set synchronous_standby_names = '*'")
    value(pair.primary, "select pg_reload_conf()")
    until(lambda: value(pair.primary, "show synchronous_standby_names") == "*")
    return pair


@contextmanager
def wait_cancelled(server: Server) -> Iterator[None]:
    """Cancel the next commit's wait for the standby."""
    canceller = threading.Thread(target=until, args=(lambda: value(server, CANCEL) == 1,))
    canceller.start()
    yield
    canceller.join()


def test_a_synchronous_standby_has_all_that_was_told_true(synchronous: Pair):
    keys = ["before", "cancelled", "cancelled", *(f"later-{number}" for number in range(20))]
    with UsageTracker(dsn=synchronous.dsn, max_wait=2.0) as tracker:

        def call(key: str) -> bool:
            return tracker.track_token_usage_sync("a", 1, idempotency_key=key)

        assert call(keys[0]) is True
        assert tracker.stats().recorded == 1
        synchronous.standby.kill()
        with wait_cancelled(synchronous.primary):
            assert call(keys[1]) is True
        assert [call(key) for key in keys[2:]] == [True] * (len(keys) - 2)
        assert (tracker.stats().recorded, tracker.stats().spooled) == (1, len(keys) - 1)
        promoted = synchronous.promote()
        until(lambda: tracker.stats().flushed.get("recorded", 0) == len(keys) - 2)
    assert {key for (key,) in promoted.rows(KEYS)} == set(keys)


def test_a_known_key_waits_for_the_standby_too(synchronous: Pair):
    calls = (
        'select track_token_usage_batch(\'[{"tenant_id":"a","idempotency_key":"k"}]\')',
        "select void_token_usage('a', 'k', 'test')",
        "select record_agent_owner('bot', 'a', '2026-01-01')",
        "select reject_usage_event('{\"idempotency_key\": \"k\"}', 'test')",
    )
    with closing(
        psycopg.connect(
            synchronous.primary.url("postgres"),
            autocommit=True,
            options="-c search_path=token_tracking_raw",
        )
    ) as connection:
        waits: list[str] = []
        connection.add_notice_handler(lambda notice: waits.append(str(notice.source_function)))
        for call in calls:
            connection.execute(call)  # type: ignore[arg-type]
        synchronous.standby.kill()
        for number, call in enumerate(calls, start=1):
            with wait_cancelled(synchronous.primary):
                connection.execute(call)  # type: ignore[arg-type]
            assert waits == ["SyncRepWaitForLSN"] * number, call


def test_a_missing_standby_leaves_no_backends_behind(synchronous: Pair):
    synchronous.standby.kill()
    seen: set[int] = set()

    def five_have_waited() -> bool:
        with closing(psycopg.connect(synchronous.primary.url("postgres"))) as connection:
            seen.update(pid for (pid,) in connection.execute(WAITING))
        return len(seen) >= 5

    with UsageTracker(dsn=synchronous.dsn, max_wait=0.5) as tracker:
        assert tracker.track_token_usage_sync("a", 1) is True
        until(five_have_waited, what="it was tried five times")
        with closing(psycopg.connect(synchronous.primary.url("postgres"))) as connection:
            assert len(connection.execute(WAITING).fetchall()) <= 2
        synchronous.start_standby()
        until(lambda: tracker.stats().flushed.get("recorded", 0) == 1, what="the event is in")


def test_builds_go_on_after_a_lossy_failover(pair: Pair, tmp_path: Path):
    day = datetime(2026, 3, 1, 10, tzinfo=UTC)
    before = Warehouse(Database(pair.primary.url("postgres"), pair.primary.environment("postgres")))
    before.insert([Event("built", day, agent="bot"), Event("lost-too", day)])
    project = DbtProject(before.database.env, tmp_path)
    project.must("run")
    before.check()
    before.insert([Event("not-built", day)])
    until(
        lambda: (
            value(pair.standby, "select count(*)::int from token_tracking_raw.usage_events") == 3
        )
    )
    run_numbers = before.status()
    # From here on the standby misses everything: events, a build of them, and an answer.
    pair.standby.stop()
    before.insert([Event("lost", day)], owners=[("bot", day, "owner")])
    project.must("run")
    with UsageTracker(dsn=pair.dsn) as tracker:
        assert tracker.track_token_usage_sync("a", 1, idempotency_key="lost-call") is True
        assert tracker.stats().recorded == 1
        after = Warehouse(pair.promote())
        assert after.rows("select count(*)::int from token_tracking_raw.usage_events") == [(3,)]
        assert after.status() == run_numbers
        after.insert([Event("new", day, tokens=7)])
        project = DbtProject(after.database.env, tmp_path)
        project.must("build", "--exclude", "test_type:unit")
        after.check()
        # Callers that still have the event send it again with its key.
        assert tracker.track_token_usage_sync("a", 1, idempotency_key="lost-call") is True
    assert len(after.rows("select from token_tracking_raw.usage_events")) == 5
