"""The client behind PgBouncer in transaction mode, which shares server connections."""

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

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
    """A separate server behind a pooler, first with a single connection to it."""

    server: Server
    dsn: str
    command: list[str]
    configuration: Path
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

    def tracks(self) -> bool:
        """Return whether this pooler can keep track of prepared statements."""
        return any(one["key"] == "max_prepared_statements" for one in self.order("show config"))

    def restart(self, *settings: str) -> None:
        """Start the pooler again with more settings; later ones replace earlier ones."""
        self.end(signal.SIGTERM)
        with self.configuration.open("a") as file:
            file.write("".join(f"{setting}\n" for setting in settings))
        self.start()

    def order(self, command: str) -> list[dict[str, object]]:
        """Run a command on the pooler's admin console, and return its rows."""
        dsn = self.dsn.replace("dbname=usage", "dbname=pgbouncer")
        with closing(psycopg.connect(dsn, autocommit=True)) as connection:
            cursor = connection.execute(command)  # type: ignore[arg-type]
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in (cursor if names else ())]

    def connections(self) -> set[str]:
        """Return what identifies each connection of a tracker to the pooler."""
        return {
            str(client["ptr"])
            for client in self.order("show clients")
            if client["application_name"] == "token-tracking"
        }

    def prepared(self, size: int) -> list[int]:
        """Return how many statements each of so many server connections has, opening them first."""
        clients = [psycopg.connect(self.dsn, prepare_threshold=None) for _ in range(size)]
        # In open transactions, so that each client has a server connection of its own.
        counts = [client.execute(PREPARED).fetchone() for client in clients]
        for client in clients:
            client.commit()  # the pooler closes a connection whose client leaves in a transaction
            client.close()
        return [count for (count,) in counts]  # type: ignore[misc]

    def end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            try:
                self.process.wait(2)
            except subprocess.TimeoutExpired:  # from 1.23 on, SIGTERM waits for the clients
                self.process.kill()
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
            configuration,
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


CALLS = 100
PREPARED = (
    "select count(*)::int from pg_prepared_statements"
    " where statement like '%track_token_usage_batch%'"
)
TRACKS = "max_prepared_statements=100"
RESETS = ("server_reset_query=discard all", "server_reset_query_always=1")


@pytest.mark.parametrize(
    ("settings", "is_prepared"),
    [
        ((), True),
        (RESETS, False),
        (("max_prepared_statements=0",), True),
        (("max_prepared_statements=0", *RESETS), False),
        ((TRACKS,), True),
        ((TRACKS, *RESETS), False),
    ],
    ids=["default", "reset", "not tracked", "not tracked, reset", "tracked", "tracked, reset"],
)
def test_prepared_statements_on_several_connections(
    pool: Pool, settings: tuple[str, ...], is_prepared: bool
):
    """Two trackers on four server connections, most of which lack the statement at first."""
    if any("max_prepared" in setting for setting in settings) and not pool.tracks():
        pytest.skip("this PgBouncer does not track prepared statements, as 1.21 and later do")
    pool.restart("default_pool_size=4", "server_round_robin=1", *settings)
    assert pool.prepared(4) == [0, 0, 0, 0]
    with ExitStack() as stack:
        trackers = [stack.enter_context(UsageTracker(dsn=pool.dsn)) for _ in range(2)]
        before = pool.connections()
        assert len(before) == len(trackers)

        def call(tracker: UsageTracker) -> list[bool]:
            return [tracker.track_token_usage_sync("a", 1) for _ in range(CALLS)]

        with ThreadPoolExecutor(len(trackers)) as threads:
            assert list(threads.map(call, trackers)) == [[True] * CALLS] * len(trackers)
        counts = pool.prepared(4)
        assert max(counts) == int(is_prepared)
        assert sum(counts) >= 2 * int(is_prepared)
        assert pool.connections() == before
        assert [tracker.stats().recorded for tracker in trackers] == [CALLS] * len(trackers)
    with closing(psycopg.connect(pool.server.url("postgres"))) as connection:
        found = connection.execute("select count(*) from token_tracking_raw.usage_events")
        assert found.fetchone() == (CALLS * len(trackers),)


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
