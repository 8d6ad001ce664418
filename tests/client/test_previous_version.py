"""The version before: its spools, its calls and its warehouse go on under this one.

It is taken from this repository's history, and runs with the libraries of today.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.databases import Database
from tests.support.previous import VERSION, apply_version_before, from_history
from tests.support.waiting import until
from token_tracking import UsageTracker
from token_tracking.client.spool.spool import spool_files
from token_tracking.raw.schema import apply_schema

NOWHERE = "postgresql://127.0.0.1:1/nowhere?connect_timeout=1"
EVENTS = (
    "select idempotency_key, tokens, occurred_at from token_tracking_raw.usage_events order by 1"
)

CALLS = """
import datetime, sys
from common.tracking import UsageTracker

then = datetime.datetime(2026, 3, 10, 12, tzinfo=datetime.UTC)
prefix, dsn = sys.argv[1:]
with UsageTracker(dsn=dsn, max_wait=2) as tracker:
    for number in range(20):
        assert tracker.track_token_usage_sync(
            "acme", number, "gpt-4o", "agent-7", input_tokens=number // 2, metadata={"n": [number]},
            idempotency_key=f"{prefix}-{number:02}", occurred_at=then,
        ), tracker.stats()
    assert tracker.void_usage_sync("acme", f"{prefix}-03", "a mistake")
    assert tracker.record_agent_owner_sync("agent-7", "owner", then)
    print(tracker.stats())
"""


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The version before, as a folder with its dbt project and, in `installed`, its package."""
    folders = ["ingest", "models", "macros", "seeds", "tests/data"]
    single = ["dbt_project.yml", "profiles.yml", "selectors.yml"]
    single += ["pyproject.toml", "README.md", "LICENSE"]
    archive = from_history("archive", "--format=zip", VERSION, *folders, *single)
    folder = tmp_path_factory.mktemp("before")
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        files.extractall(folder)
    # As pip builds and installs a wheel, without a package index.
    install = "install --quiet --no-deps --no-index --no-build-isolation --no-compile --target"
    command = [sys.executable, "-m", "pip", *install.split(), str(folder / "installed"), "."]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def as_before(before: Path, script: str, *words: str, **env: str) -> str:
    """Run a script with the package of the version before; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**os.environ, "PYTHONPATH": str(before / "installed"), **env},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_spool_is_taken_over(before: Path, emptied: Database, tmp_path: Path):
    folder = tmp_path / "spool"
    as_before(before, CALLS, "k", NOWHERE, TOKEN_TRACKING_SPOOL_DIR=str(folder))
    [left] = spool_files(folder)
    assert left.requests == 22
    with UsageTracker(dsn=emptied.url, spool_dir=folder) as tracker:
        assert tracker.track_token_usage_sync("acme", 1, idempotency_key="new")
        until(lambda: sum(tracker.stats().flushed.values()) == 22)
    assert not any(file.requests for file in spool_files(folder))
    rows = emptied.rows(EVENTS)
    assert [(key, tokens) for key, tokens, _ in rows] == [
        *((f"k-{number:02}", number) for number in range(20)),
        ("new", 1),
    ]
    assert str(rows[0][2].astimezone(None).timestamp()) == "1773144000.0"
    assert emptied.rows("select idempotency_key from token_tracking_raw.usage_voids") == [("k-03",)]
    assert emptied.value("select owner_tenant_id from token_tracking_raw.agent_owners") == "owner"


def test_its_default_spool_is_taken_over(before: Path, emptied: Database, tmp_path: Path):
    # Without a folder of its own, found by the database; it cannot be reached for the calls.
    dsn = f"{emptied.url}&connect_timeout=1" if "?" in emptied.url else emptied.url
    script = CALLS.replace("dsn=dsn", "dsn=dsn, spool_dir=None").replace(
        "with UsageTracker", "import psycopg\npsycopg.Connection.connect = None\nwith UsageTracker"
    )
    env = {"XDG_STATE_HOME": str(tmp_path / "state"), "TOKEN_TRACKING_SPOOL_DIR": ""}
    as_before(before, script, "k", dsn, **env)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", env["XDG_STATE_HOME"])
        patch.delenv("TOKEN_TRACKING_SPOOL_DIR")
        with UsageTracker(dsn=dsn) as tracker:
            until(lambda: sum(tracker.stats().flushed.values()) == 22)
    assert len(emptied.rows(EVENTS)) == 20


def test_its_services_write_into_the_schema_of_today(before: Path, emptied: Database):
    stats = as_before(before, CALLS, "k", emptied.url)
    assert "recorded=22" in stats
    assert "recorded=2, duplicate=20" in as_before(before, CALLS, "k", emptied.url)
    with UsageTracker(dsn=emptied.url) as tracker:
        again = [
            tracker.track_token_usage_sync(
                "acme", number, "gpt-4o", "agent-7", input_tokens=number // 2,
                idempotency_key=f"k-{number:02}",
            )
            for number in range(20)
        ]  # fmt: skip
        assert all(again)
        assert not tracker.track_token_usage_sync("acme", 999, idempotency_key="k-07")
    assert tracker.stats().duplicate == 20
    assert len(emptied.rows(EVENTS)) == 20


def test_both_versions_write_side_by_side(before: Path, emptied: Database):
    with (
        ThreadPoolExecutor(1) as pool,
        UsageTracker(dsn=emptied.url) as tracker,
    ):
        older = pool.submit(as_before, before, CALLS, "old", emptied.url)
        number = 0
        while not older.done() or number % 20:
            assert tracker.track_token_usage_sync(
                "acme", number % 20, "gpt-4o", "agent-7", input_tokens=number % 20 // 2,
                idempotency_key=f"new-{number:05}", provider="openai",
                cache_read_tokens=number % 20 // 4,
            )  # fmt: skip
            number += 1
        assert "recorded=22" in older.result()
    sums = emptied.rows(
        """
        select left(idempotency_key, 3), sum(tokens), sum(input_tokens), count(*), min(provider),
            sum(cache_read_tokens)
        from token_tracking_raw.usage_events group by 1 order by 1
        """
    )
    times = number // 20
    assert times > 0
    assert sums == [
        ("new", 190 * times, 90 * times, 20 * times, "openai", 40 * times),
        ("old", 190, 90, 20, None, None),
    ]


def test_what_an_older_schema_does_not_know_waits(database: Database, tmp_path: Path):
    """A service is upgraded before the schema: no event is lost, and others go on."""
    with closing(database.connect()) as connection:
        connection.execute("drop schema token_tracking_raw cascade")
    apply_version_before(database)
    with UsageTracker(dsn=database.url, spool_dir=tmp_path) as tracker:
        assert tracker.track_token_usage_sync("acme", 1, idempotency_key="plain")
        assert tracker.track_token_usage_sync(
            "acme", input_tokens=7, cache_read_tokens=3, idempotency_key="kinds"
        )
        assert tracker.track_token_usage_sync("acme", 2, idempotency_key="later")
        until(lambda: tracker.stats().early == 1)
        stats = tracker.stats()
        assert (stats.recorded, stats.spooled, stats.rejected) == (2, 1, 0)
        with closing(database.connect()) as connection:
            apply_schema(connection)
    counted = "select count(*) from token_tracking_raw.usage_events"
    with UsageTracker(dsn=database.url, spool_dir=tmp_path):  # flushes what the first one left
        until(lambda: database.value(counted) == 3)
    assert database.rows(
        "select idempotency_key, cache_read_tokens from token_tracking_raw.usage_events order by 1"
    ) == [("kinds", 3), ("later", None), ("plain", None)]


APPLY = """
import sys, psycopg
from token_tracking.schema import apply_schema
with psycopg.connect(sys.argv[1]) as connection:
    print(apply_schema(connection))
"""


def test_its_database_and_its_totals_are_upgraded(before: Path, database: Database, tmp_path: Path):
    with closing(database.connect()) as connection:
        connection.execute("drop schema token_tracking_raw cascade")
    assert "before=0" in as_before(before, APPLY, database.url)
    as_before(before, CALLS, "old", database.url)
    dbt(before, database, tmp_path)
    months = "select tenant_id, tokens, event_count from token_tracking.monthly_token_usage"
    assert database.rows(months) == [("owner", sum(range(20)) - 3, 19)]

    with closing(database.connect()) as connection:
        connection.execute("create schema analysts")
        for mart in ("hourly_token_usage", "daily_token_usage", "monthly_token_usage"):
            connection.execute(
                f"create view analysts.{mart} as select * from token_tracking.{mart}"
            )
        assert apply_schema(connection).after > 1
    as_before(before, CALLS, "meanwhile", database.url)
    with UsageTracker(dsn=database.url) as tracker:
        assert tracker.track_token_usage_sync("acme", 1000)
    dbt(ROOT, database, tmp_path)
    assert sorted(database.rows(months)) == [
        ("acme", 1000, 1),
        ("owner", 2 * (sum(range(20)) - 3), 38),
    ]
    for mart in ("hourly_token_usage", "daily_token_usage", "monthly_token_usage"):
        assert database.value(f"select sum(tokens) from analysts.{mart}") == 1374


def dbt(project: Path, database: Database, scratch: Path) -> None:
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("dbt")), "--quiet", "build"),
            *("--project-dir", str(project), "--profiles-dir", str(project)),
            *("--target-path", str(scratch / project.name), "--log-path", str(scratch)),
        ],
        env={**os.environ, **database.env},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
