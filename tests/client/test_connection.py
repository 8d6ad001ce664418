"""The connection itself: the source of its settings, its waits, and its clock."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.databases import Database
from token_tracking import UsageTracker
from token_tracking.client.connection import Connection

EVENTS = "select count(*)::int from token_tracking_raw.usage_events"
APPLICATION = "select current_setting('application_name')"


def test_what_the_dsn_says_counts(emptied: Database, monkeypatch: pytest.MonkeyPatch):
    dsn = make_conninfo(emptied.url, application_name="mine", keepalives_idle=99, connect_timeout=7)
    with closing(Connection.open(dsn, patience=2)) as mine:
        assert mine.execute(APPLICATION).fetchone() == ("mine",)
        used = conninfo_to_dict(mine.info.dsn)
        assert (used["keepalives_idle"], used["connect_timeout"]) == ("99", "7")
        assert used["keepalives_count"] == "3"
    with closing(Connection.open(emptied.url, patience=2)) as ours:
        assert ours.execute(APPLICATION).fetchone() == ("token-tracking",)
        assert conninfo_to_dict(ours.info.dsn)["connect_timeout"] == "2"
    monkeypatch.setenv("PGAPPNAME", "of the environment")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "9")
    with closing(Connection.open(emptied.url, patience=2)) as theirs:
        assert theirs.execute(APPLICATION).fetchone() == ("of the environment",)
        assert conninfo_to_dict(theirs.info.dsn).get("connect_timeout", "9") == "9"


def test_the_session_keeps_its_settings(emptied: Database):
    settings = "select name from pg_settings where source = 'session'"
    with closing(Connection.open(emptied.url, patience=2)) as connection:
        connection.record(b"[{}]")
        connection.reject_all([(b"{}", "why")])
        connection.void("a", "k", "why")
        assert connection.execute(settings).fetchall() == []


@pytest.mark.parametrize(
    "call",
    [
        lambda one: one.record(b'[{"tenant_id": "a", "idempotency_key": "k", "tokens": 1}]'),
        lambda one: one.void("a", "k", "why"),
        lambda one: one.record_owner(
            "bot", "a", "2026-01-01Z", "00000000-0000-0000-0000-000000000000"
        ),
        lambda one: one.reject_all([(b'{"idempotency_key": "k"}', "why")]),
        lambda one: one.reject(b'{"idempotency_key": "k"}', "why"),
    ],
    ids=["batch", "void", "owner", "rejections", "rejection"],
)
def test_a_statement_that_waits_does_not_stay_behind(emptied: Database, call):
    """A waiting server does not check whether its client has gone."""
    with (
        closing(Connection.open(emptied.url)) as holder,
        closing(Connection.open(emptied.url)) as waiting,
    ):
        assert waiting.lock_timeout == 5000
        waiting.lock_timeout = 50
        holder.execute("begin")
        call(holder)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            call(waiting)
        holder.execute("rollback")
        call(waiting)


def test_a_clock_that_is_set_while_connected(emptied: Database, monkeypatch: pytest.MonkeyPatch):
    """Events wait while the clock is an hour ahead, and no longer, on the same connection."""
    ahead = timedelta(0)

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + ahead

    real = time.time
    monkeypatch.setattr("token_tracking.client.calls.datetime", Clock)
    monkeypatch.setattr("token_tracking.client.connection.datetime", Clock)
    monkeypatch.setattr(
        "token_tracking.client.connection.time.time", lambda: real() + ahead.total_seconds()
    )
    right = datetime.now(UTC)
    with UsageTracker(dsn=emptied.url) as tracker:
        assert tracker.track_token_usage_sync("a", 1) is True
        ahead = timedelta(hours=1)
        assert tracker.track_token_usage_sync("a", 1) is True
        assert tracker.track_token_usage_sync("a", 1, occurred_at=right) is True
        assert (tracker.stats().recorded, tracker.stats().spooled) == (2, 1)
    with UsageTracker(dsn=emptied.url) as tracker:
        assert tracker.track_token_usage_sync("b", 1) is True
        assert (tracker.stats().recorded, tracker.stats().spooled) == (0, 1)
        ahead = timedelta(0)
        assert tracker.track_token_usage_sync("b", 1) is True
        assert (tracker.stats().recorded, tracker.stats().spooled) == (1, 1)
    assert emptied.value(EVENTS) == 3
