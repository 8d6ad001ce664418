"""The client behind PgBouncer in transaction mode, which shares a server connection."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import psycopg
import pytest

from tests.support.databases import NOT_DURABLE, server_folder
from tests.support.waiting import ended, until
from token_tracking import UsageTracker
from token_tracking.embedded.server import Server
from token_tracking.raw.schema import apply_schema

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SETTINGS = (
    "select name, setting from pg_settings where source = 'session'"
    " and name not in ('application_name', 'client_encoding', 'DateStyle', 'TimeZone',"
    " 'standard_conforming_strings')"  # which the pooler itself sets for each of its clients
)
TABLES = ("usage_events", "usage_event_conflicts", "usage_event_rejections", "agent_owners")


@dataclass
class Pool:
    """A separate server behind a pooler with a single connection to it."""

    server: Server
    dsn: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self.answers, what="the pooler answers")

    def answers(self) -> bool:
        try:
            self.order("show version")
        except psycopg.OperationalError:
            return False
        return True

    def order(self, command: str) -> None:
        """Run a command on the pooler's admin console."""
        dsn = self.dsn.replace("dbname=usage", "dbname=pgbouncer")
        with closing(psycopg.connect(dsn, autocommit=True)) as connection:
            connection.execute(command)  # type: ignore[arg-type]

    def end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()


@pytest.fixture
def pool() -> Iterator[Pool]:
    if PGBOUNCER is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    folder = server_folder()
    server = Server(folder / "data", settings=NOT_DURABLE)
    pool = None
    try:
        server.start()
        with closing(psycopg.connect(server.url("postgres"))) as connection:
            apply_schema(connection)
        owner = (folder / "data").stat().st_uid
        place = folder / "pool"
        place.mkdir()
        os.chown(place, owner, -1)
        env = server.environment("postgres")
        configuration = place / "pgbouncer.ini"
        configuration.write_text(
            "[databases]\n"
            f"usage = host={env['PGHOST']} port={env.get('PGPORT', 5432)} dbname=postgres"
            " user=postgres\n"
            "[pgbouncer]\n"
            f"unix_socket_dir={place}\nlisten_port=6432\nauth_type=any\nadmin_users=postgres\n"
            f"pool_mode=transaction\ndefault_pool_size=1\nlogfile={place}/log\n"
        )
        become = ["-u", pwd.getpwuid(owner).pw_name] if os.geteuid() == 0 else []
        pool = Pool(
            server,
            f"host={place} port=6432 dbname=usage user=postgres",
            [PGBOUNCER, "-q", *become, str(configuration)],
        )
        pool.start()
        yield pool
    finally:
        if pool is not None:
            pool.end(signal.SIGTERM)
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def test_a_tracker_leaves_others_of_the_pool_alone(pool: Pool):
    async def many(tracker: UsageTracker) -> list[bool]:
        return await asyncio.gather(*(tracker.track_token_usage("a", 1) for _ in range(500)))

    with (
        closing(psycopg.connect(pool.dsn, autocommit=True, prepare_threshold=None)) as somebody,
        UsageTracker(dsn=pool.dsn) as tracker,
    ):
        assert asyncio.run(many(tracker)) == [True] * 500
        assert tracker.track_token_usage_sync("a", 1, idempotency_key="k") is True
        assert tracker.track_token_usage_sync("a", 2, idempotency_key="k") is False
        assert tracker.track_token_usage_sync("a", -1) is False
        assert tracker.void_usage_sync("a", "k", "test") is True
        assert tracker.record_agent_owner_sync("bot", "a") is True
        stats = tracker.stats()
        assert (stats.recorded, stats.conflict, stats.rejected) == (503, 1, 1)
        assert somebody.execute(SETTINGS).fetchall() == []
        assert somebody.execute("show lock_timeout").fetchone() == ("0",)

        pool.server.kill()
        assert [tracker.track_token_usage_sync("a", 1) for _ in range(20)] == [True] * 20
        assert tracker.stats().spooled == 20
        pool.server.start()
        until(lambda: tracker.stats().flushed == {"recorded": 20}, 30, "the spool is empty")
        assert ended(tracker.stats()) == 525
    with closing(psycopg.connect(pool.server.url("postgres"))) as connection:
        counts = [
            connection.execute(f"select count(*)::int from token_tracking_raw.{table}").fetchone()  # type: ignore[arg-type]
            for table in TABLES
        ]
    assert counts == [(521,), (1,), (1,), (1,)]


def test_a_pooler_changed_under_load_loses_nothing(pool: Pool):
    told: list[str] = []
    slowest = 0.0
    done = threading.Event()

    with UsageTracker(dsn=pool.dsn, max_wait=1.0) as tracker:

        def call_on(name: str) -> None:
            nonlocal slowest
            number = 0
            while not done.is_set():
                number += 1
                started = time.monotonic()
                if tracker.track_token_usage_sync("a", 1, idempotency_key=f"{name}-{number}"):
                    told.append(f"{name}-{number}")
                slowest = max(slowest, time.monotonic() - started)
                done.wait(0.002)

        callers = [threading.Thread(target=call_on, args=(name,)) for name in "xyz"]
        for caller in callers:
            caller.start()

        def comes_in_again(what: str) -> None:
            before = tracker.stats().recorded
            until(lambda: tracker.stats().recorded > before, 20, what)

        try:
            comes_in_again("the start")
            for orders in (
                ["reload"],
                ["reconnect"],
                ["set server_lifetime = 1", "set default_pool_size = 3"],
                ["set pool_mode = 'session'", "reload"],
                ["pause usage", "resume usage"],
                ["kill usage", "resume usage"],
                ["disable usage", "enable usage"],
            ):
                for order in orders:
                    pool.order(order)
                    time.sleep(0.2)
                comes_in_again(", ".join(orders))
            for number in (signal.SIGKILL, signal.SIGTERM):
                pool.end(number)
                time.sleep(0.2)
                pool.start()
                comes_in_again(number.name)
        finally:
            done.set()
            for caller in callers:
                caller.join()
        until(
            lambda: tracker.stats().spooled == sum(tracker.stats().flushed.values()),
            what="the spool is empty",
        )
    assert slowest < 3.0
    with closing(psycopg.connect(pool.server.url("postgres"))) as connection:
        rows = connection.execute(
            "select idempotency_key from token_tracking_raw.usage_events"
        ).fetchall()
    recorded = [key for (key,) in rows]
    assert len(recorded) == len(set(recorded))
    assert set(told) <= set(recorded)
