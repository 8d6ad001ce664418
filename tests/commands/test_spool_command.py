"""`token-tracking spool status` and `flush`."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import Database
from tests.support.spooled import left_behind, spool_command
from token_tracking import UsageTracker

EVENTS = "select count(*)::int from token_tracking_raw.usage_events"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def test_nothing_waits(database: Database, folder: Path):
    assert spool_command(database.url, folder, "status").stdout == "nothing waits\n"
    assert spool_command(database.url, folder, "flush").stdout == "nothing to flush\n"
    assert not folder.exists()


def test_what_ended_processes_left_is_shown_and_sent(database: Database, folder: Path):
    left_behind(folder, 700)
    left_behind(folder, 3)
    with UsageTracker(dsn="host=/nonexistent", max_wait=0.3, spool_dir=folder) as tracker:
        assert tracker.track_token_usage_sync("mine", 1) is True
        shown = spool_command(database.url, folder, "status")
        assert shown.returncode == 0, shown.stderr
        assert str(folder) in shown.stderr
        assert " 700 " in shown.stdout
        assert shown.stdout.count("nobody") == 2
        assert shown.stdout.count("a running process") == 1
        flushed = spool_command(database.url, folder, "flush")
        assert flushed.returncode == 0, flushed.stderr
        assert flushed.stdout == "flushed: 703 recorded\n"
        assert "1 still wait" in flushed.stderr
    assert database.value(EVENTS) == 703
    assert len(list(folder.glob("*.sqlite"))) == 1
    assert spool_command(database.url, folder, "flush").stdout == "flushed: 1 recorded\n"
    assert list(folder.iterdir()) == []


def test_without_a_database_all_stays(folder: Path):
    left_behind(folder, 3)
    flushed = spool_command("host=/nonexistent", folder, "flush")
    assert flushed.returncode == 1
    assert "cannot be reached" in flushed.stderr
    assert len(flushed.stderr.splitlines()) == 1
    shown = spool_command("host=/nonexistent", folder, "status")
    assert " 3 " in shown.stdout
    assert shown.returncode == 0


def test_a_file_that_cannot_be_read_is_told(database: Database, folder: Path):
    left_behind(folder, 3)
    (folder / "broken.sqlite").write_bytes(b"this is no database" * 100)
    flushed = spool_command(database.url, folder, "flush")
    assert "broken.sqlite" in flushed.stderr
    assert flushed.returncode == 3
    assert database.value(EVENTS) == 3
    shown = spool_command(database.url, folder, "status")
    assert "unreadable" in shown.stdout
    assert shown.returncode == 0


def test_a_row_that_cannot_be_read_is_told_and_stays(database: Database, folder: Path):
    left_behind(folder, 3)
    [path] = folder.glob("*.sqlite")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "update requests set kind = 'from the future', checksum = null where number = 2"
        )
    flushed = spool_command(database.url, folder, "flush")
    assert flushed.stdout == "flushed: 2 recorded\n"
    assert "keeps 1 row(s) of a kind that is not known here" in flushed.stderr.replace("\n", " ")
    assert f"1 still wait in {path.name}" in flushed.stderr
    assert flushed.returncode == 3


def test_what_waits_is_there_while_tracking_is_off(database: Database, folder: Path):
    left_behind(folder, 3)
    off = {"TOKEN_TRACKING_ENABLED": "0"}
    assert " 3 " in spool_command(database.url, folder, "status", **off).stdout
    assert spool_command(database.url, folder, "flush", **off).stdout == "flushed: 3 recorded\n"


def test_what_waits_for_a_lock_is_told_and_passed_by(database: Database, folder: Path):
    left_behind(folder, 700)
    [path] = folder.glob("*.sqlite")
    with closing(sqlite3.connect(path)) as connection:
        [(tenant, key)] = connection.execute(
            "select first, second from requests order by number limit 1"
        ).fetchall()
    with closing(psycopg.connect(database.url)) as holder:
        holder.execute(
            "select token_tracking_raw.track_token_usage(%s, 1, p_idempotency_key => %s)",
            (tenant, key),
        )
        flushed = spool_command(database.url, folder, "flush")
        assert flushed.stdout == "flushed: 699 recorded\n"
        assert "1 wait for a lock that another transaction holds" in " ".join(
            flushed.stderr.split()
        )
        assert flushed.returncode == 3
        holder.rollback()
    assert spool_command(database.url, folder, "flush").stdout == "flushed: 1 recorded\n"
