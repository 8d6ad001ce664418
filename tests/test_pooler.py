"""Behind PgBouncer in transaction mode, whose server connection others use in turn."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from token_tracking import UsageTracker
from token_tracking.schema import apply_schema
from token_tracking.server import Server

from .conftest import NOT_DURABLE
from .faults.arena import ended, until

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SETTINGS = (
    "select name, setting from pg_settings where source = 'session'"
    " and name not in ('application_name', 'client_encoding', 'DateStyle', 'TimeZone',"
    " 'standard_conforming_strings')"  # which the pooler itself sets for each of its clients
)
TABLES = ("usage_events", "usage_event_conflicts", "usage_event_rejections", "agent_owners")


@dataclass
class Pool:
    """A server of its own behind a pooler with one connection to it."""

    server: Server
    dsn: str


@pytest.fixture
def pool() -> Iterator[Pool]:
    if PGBOUNCER is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    folder = Path(tempfile.mkdtemp(prefix="tt-"))
    folder.chmod(0o755)
    server = Server(folder / "data", settings=NOT_DURABLE)
    pooler = None
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
            f"unix_socket_dir={place}\nlisten_port=6432\nauth_type=any\n"
            f"pool_mode=transaction\ndefault_pool_size=1\nlogfile={place}/log\n"
        )
        become = ["-u", pwd.getpwuid(owner).pw_name] if os.geteuid() == 0 else []
        pooler = subprocess.Popen(
            [PGBOUNCER, "-q", *become, str(configuration)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until((place / ".s.PGSQL.6432").exists, what="the pooler listens")
        yield Pool(server, f"host={place} port=6432 dbname=usage user=postgres")
    finally:
        if pooler is not None:
            pooler.terminate()
            pooler.wait()
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def test_all_that_a_tracker_does_leaves_others_of_the_pool_alone(pool: Pool):
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
