"""A lock that another transaction holds stops the requests that need it, and no others."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import Database
from tests.support.waiting import ended, until
from token_tracking import UsageTracker
from token_tracking.client.connection import Connection
from token_tracking.client.delivery import Delivery
from token_tracking.client.held_keys import HeldKeys
from token_tracking.client.recovery import flush
from token_tracking.client.requests import EventRequest, Outcome, OwnerRequest
from token_tracking.client.spool.spool import Spool

EVENTS = "select count(*)::int from token_tracking_raw.usage_events"
TENANTS = (
    "select tenant_id, count(*)::int from token_tracking_raw.usage_events group by 1 order by 1"
)
OWNERS = (
    "select owner_tenant_id from token_tracking_raw.agent_owners"
    " where agent_id = 'bot' order by revision"
)
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def database(emptied: Database) -> Database:
    return emptied


@contextmanager
def another_session(database: Database, *statements: str) -> Iterator[psycopg.Connection[tuple]]:
    """Run the statements in a transaction that stays open and is finally rolled back."""
    with closing(psycopg.connect(database.url)) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]
        yield connection
        connection.rollback()


def holding(tenant: str, key: str, tokens: int = 1) -> str:
    return (
        f"select token_tracking_raw.track_token_usage('{tenant}', {tokens},"
        f" p_idempotency_key => '{key}')"
    )


def event(tenant: str, key: str) -> EventRequest:
    text = f'{{"tenant_id":"{tenant}","idempotency_key":"{key}","tokens":7}}'
    return EventRequest((tenant, key), text.encode())


def is_down(tracker: UsageTracker) -> bool:
    return tracker._writer._recovery.is_down


def test_a_held_key_sends_no_other_event_to_the_spool(
    database: Database, caplog: pytest.LogCaptureFixture
):
    """For any holder and any duration; the event is recorded when the lock is released."""
    with UsageTracker(dsn=database.url) as tracker:
        with another_session(database, holding("victim", "k")):
            assert tracker.track_token_usage_sync("victim", 1, idempotency_key="k") is True
            for number in range(40):
                assert tracker.track_token_usage_sync(f"t{number % 4}", 1) is True
                assert not is_down(tracker)
                time.sleep(0.02)
            stats = tracker.stats()
            assert (stats.recorded, stats.spooled, stats.locked) == (40, 1, 1)
            assert database.value(EVENTS) == 40
        until(lambda: tracker.stats().flushed == {"recorded": 1}, 3, "it is in")
        until(lambda: tracker.stats().locked == 0, 3)
        until(lambda: not tracker._writer._recovery.held, 3, "the key is as any other one")
        assert tracker.track_token_usage_sync("victim", 1, idempotency_key="k") is True
        assert tracker.stats().duplicate == 1
    assert database.value(EVENTS) == 41
    assert caplog.text.count("wait for a lock that another transaction holds") == 1
    assert ended(tracker.stats()) == 42


def test_async_callers_of_a_batch_with_held_keys_go_on(database: Database):
    """Several keys of several tenants among many, sent at once, and within the bounded wait."""
    held = [holding(f"t{number % 3}", f"k{number}") for number in (7, 100, 301)]

    async def main(tracker: UsageTracker) -> list[bool]:
        calls = [
            tracker.track_token_usage(f"t{number % 3}", 1, idempotency_key=f"k{number}")
            for number in range(400)
        ]
        return await asyncio.gather(*calls)

    with UsageTracker(dsn=database.url, max_wait=10) as tracker:
        with another_session(database, *held):
            assert asyncio.run(main(tracker)) == [True] * 400
            assert (tracker.stats().recorded, tracker.stats().spooled) == (397, 3)
            assert not is_down(tracker)
            assert asyncio.run(main(tracker)) == [True] * 400
            assert (tracker.stats().duplicate, tracker.stats().spooled) == (397, 6)
        until(lambda: sum(tracker.stats().flushed.values()) == 6, 5, "all are in")
    assert database.value(EVENTS) == 400


@pytest.mark.timed
def test_a_call_behind_a_held_key_is_answered_within_its_bound(database: Database):
    with (
        UsageTracker(dsn=database.url, max_wait=1) as tracker,
        another_session(database, holding("a", "k")),
    ):
        for key in ("k", "k", "other"):
            started = time.monotonic()
            assert tracker.track_token_usage_sync("a", 1, idempotency_key=key) is True
            assert time.monotonic() - started < 1
        assert tracker.stats().recorded == 1


def test_a_flush_passes_by_what_waits(database: Database, tmp_path: Path):
    """The oldest of three batches is full of held keys."""
    held = [holding("held", f"{number}") for number in range(6)]
    spool = Spool.create(tmp_path / "other", 2**30)
    spool.append([event("held", f"{number}") for number in range(6)])
    spool.append([event(f"t{number % 3}", f"{number}") for number in range(1494)])
    with closing(Connection.open(database.url)) as connection, another_session(database, *held):
        ends = list(flush(spool, connection))
        assert sum(end[Outcome.RECORDED] for end in ends) == 1494
        assert len(spool.oldest(100, 2**20)) == 6
    spool.close()
    with UsageTracker(dsn=database.url, spool_dir=tmp_path / "other") as tracker:
        until(lambda: database.value(EVENTS) == 1500, 10, "those, too")
        assert tracker.track_token_usage_sync("a", 1) is True


@pytest.mark.parametrize(("held", "free"), [(30, 470), (150, 50)])
def test_many_held_keys_stop_no_other_one(database: Database, tmp_path: Path, held: int, free: int):
    """They are found in several passes of bounded duration, in any order among the others."""
    keys = [f"{number:04}" for number in range(held + free)]
    locked = set(random.Random(1).sample(keys, held))
    spool = Spool.create(tmp_path / "other", 2**30)
    spool.append([event("a", key) for key in keys])
    spool.close()
    statements = [holding("a", key) for key in sorted(locked)]
    with (
        another_session(database, *statements),
        UsageTracker(dsn=database.url, spool_dir=tmp_path / "other") as tracker,
    ):
        until(lambda: database.value(EVENTS) == free, 60, "all that is free is in")
        until(lambda: tracker.stats().locked == held, 60, "each of the others is set aside")
        assert tracker.track_token_usage_sync("other", 1) is True
        assert tracker.stats().recorded == 1
    with UsageTracker(dsn=database.url, spool_dir=tmp_path / "other"):
        until(lambda: database.value(EVENTS) == held + free + 1, 20, "those, too")


def test_the_way_back_after_an_outage_passes_by_what_waits(database: Database, tmp_path: Path):
    """Even if all spooled requests wait, the next call is recorded."""
    held = [holding("held", f"{number}") for number in range(6)]
    folder = tmp_path / "spool"
    with UsageTracker(dsn=database.url, spool_dir=folder) as tracker:
        assert tracker.track_token_usage_sync("a", 1) is True
        tracker._writer._spool = spool = Spool.create(folder, 2**30)
        spool.append([event("held", f"{number}") for number in range(6)])
        with another_session(database, *held):
            tracker._writer._recovery.spooled()
            tracker._writer._recovery.failed()
            until(lambda: not is_down(tracker), 5, "it is connected again")
            until(lambda: tracker.stats().locked == 6, 10, "each of them is set aside")
            before = tracker.stats().recorded
            assert tracker.track_token_usage_sync("a", 1) is True
            assert tracker.stats().recorded == before + 1
        until(lambda: tracker.stats().flushed == {"recorded": 6}, 5)
    assert database.rows(TENANTS) == [("a", 2), ("held", 6)]


def test_the_first_payload_of_a_held_key_counts(database: Database):
    with UsageTracker(dsn=database.url) as tracker:
        with another_session(database, holding("a", "k", 99)):
            for tokens in (1, 2):
                assert tracker.track_token_usage_sync("a", tokens, idempotency_key="k") is True
            assert tracker.stats().spooled == 2
        until(lambda: tracker.stats().flushed == {"recorded": 1, "conflict": 1}, 5)
    assert database.rows("select tokens::int from token_tracking_raw.usage_events") == [(1,)]


def test_owners_of_a_held_agent_keep_their_order(database: Database):
    """The later call wins; other agents, voids and events are not delayed."""
    held = "select token_tracking_raw.record_agent_owner('bot', 'before', '2026-01-01Z')"
    with UsageTracker(dsn=database.url) as tracker:
        with another_session(database, held):
            assert tracker.record_agent_owner_sync("bot", "first", START) is True
            assert tracker.record_agent_owner_sync("other", "a", START) is True
            assert tracker.void_usage_sync("a", "k", "why") is True
            assert tracker.track_token_usage_sync("a", 1) is True
            assert tracker.record_agent_owner_sync("bot", "second", START) is True
            assert (tracker.stats().recorded, tracker.stats().spooled) == (3, 2)
            assert not is_down(tracker)
        until(lambda: tracker.stats().flushed == {"recorded": 2}, 5)
        until(lambda: not tracker._writer._recovery.held, 5)
        assert tracker.record_agent_owner_sync("bot", "third", START) is True
    assert database.rows(OWNERS) == [("first",), ("second",), ("third",)]


def test_a_later_owner_waits_behind_an_earlier_one(database: Database):
    at = START.isoformat()
    first, second = (OwnerRequest.of("bot", name, at) for name in ("first", "second"))
    held = HeldKeys()
    held.put_off(first.lock_key())
    delivery = Delivery([second, OwnerRequest.of("other", "a", at)], held)
    with closing(Connection.open(database.url)) as connection:
        delivery.send(connection)
    assert delivery.set_aside() == [second]
    assert database.rows(OWNERS) == []
    assert +delivery.outcomes == {Outcome.RECORDED: 1}


def test_owners_in_the_spool_keep_their_order(database: Database, tmp_path: Path):
    spool = Spool.create(tmp_path / "other", 2**30)
    at = START.isoformat()
    spool.append([OwnerRequest.of("bot", f"{number}", at) for number in range(3)])
    spool.append([event("a", f"{number}") for number in range(600)])
    spool.append([OwnerRequest.of("bot", "last", at), OwnerRequest.of("other", "a", at)])
    held = "select token_tracking_raw.record_agent_owner('bot', 'before', '2026-01-01Z')"
    with closing(Connection.open(database.url)) as connection:
        with another_session(database, held):
            ends = list(flush(spool, connection))
            assert sum(end[Outcome.RECORDED] for end in ends) == 601
        assert [end[Outcome.RECORDED] for end in flush(spool, connection)] == [4]
    spool.close()
    assert database.rows(OWNERS) == [("0",), ("1",), ("2",), ("last",)]


def test_a_held_void_and_rejection_stop_no_event(database: Database):
    """A rejection waits where another session keeps the same payload."""
    void = "select token_tracking_raw.void_token_usage('a', 'k', 'why')"
    bad = {"tenant_id": "a", "tokens": -1, "idempotency_key": "bad"}
    with UsageTracker(dsn=database.url) as tracker:
        assert tracker.track_many_sync([bad]) == [False]
        taken = "delete from token_tracking_raw.usage_event_rejections"
        with another_session(database, void, taken):
            assert tracker.void_usage_sync("a", "k", "why") is True
            assert tracker.track_many_sync([bad]) == [False]
            assert tracker.track_token_usage_sync("a", 1) is True
            assert not is_down(tracker)
            assert tracker.stats().recorded == 1
        until(lambda: tracker.stats().locked == 0, 5)
    assert database.value("select count(*)::int from token_tracking_raw.usage_voids") == 1


def test_a_lock_on_a_whole_table_is_an_outage(database: Database, caplog: pytest.LogCaptureFixture):
    """Detected with two waits instead of one per event; it ends when the lock is released."""
    with UsageTracker(dsn=database.url, max_wait=5) as tracker:
        assert tracker.track_token_usage_sync("a", 1) is True
        with another_session(
            database, "lock table token_tracking_raw.usage_events in access exclusive mode"
        ):
            started = time.monotonic()
            calls = [{"tenant_id": "a", "tokens": 1}] * 400
            assert tracker.track_many_sync(calls) == [True] * 400
            assert time.monotonic() - started < 2
            assert (tracker.stats().spooled, is_down(tracker)) == (400, True)
            assert "LockNotAvailable 55P03: another session holds a lock on a table" in caplog.text
        until(lambda: not is_down(tracker), 5)
        until(lambda: tracker.stats().flushed == {"recorded": 400}, 5)
    assert database.value(EVENTS) == 401


def test_a_lock_on_the_owners_table_stops_no_event(database: Database):
    with UsageTracker(dsn=database.url, max_wait=5) as tracker:
        told: list[bool] = []
        with another_session(
            database, "lock table token_tracking_raw.agent_owners in access exclusive mode"
        ):
            callers = [
                threading.Thread(
                    target=lambda n=number: told.append(
                        tracker.record_agent_owner_sync(f"bot-{n}", "a", START)
                    )
                )
                for number in range(40)
            ]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            assert told == [True] * 40
            assert tracker.track_token_usage_sync("a", 1) is True
            assert tracker.stats().recorded == 1
            assert not is_down(tracker)
        until(lambda: tracker.stats().flushed == {"recorded": 40}, 10)


def test_without_a_spool_only_what_waits_is_told_false(database: Database):
    given: list[object] = []
    with UsageTracker(
        dsn=database.url,
        spool_dir="/proc/nowhere",
        fallback=lambda **call: given.append(call["idempotency_key"]) or True,
    ) as tracker:
        with another_session(database, holding("a", "k")):
            assert tracker.track_token_usage_sync("a", 1, idempotency_key="k") is True
            assert [tracker.track_token_usage_sync("a", 1) for _ in range(5)] == [True] * 5
            assert given == ["k"]
            assert (tracker.stats().recorded, tracker.stats().fallback) == (5, 1)
        until(lambda: not tracker._writer._recovery.held, 5, "nothing waits for the key")
        assert tracker.track_token_usage_sync("a", 1, idempotency_key="other") is True
        assert tracker.stats().recorded == 6


@contextmanager
def slow_database(database: Database) -> Iterator[psycopg.Connection[tuple]]:
    """Make each insert take 20 ms; give a connection whose settings end with the test."""
    with closing(database.connect()) as dba:
        dba.execute("set default_transaction_read_only = off")
        dba.execute(
            "create function slow() returns trigger language plpgsql as"
            " $$ begin perform pg_sleep(0.02); return new; end $$;"
            "create trigger slow before insert on token_tracking_raw.usage_events"
            " for each row execute function slow()"
        )
        try:
            yield dba
        finally:
            set_anew(dba)
            dba.execute("drop function slow() cascade")


def set_anew(dba: psycopg.Connection[tuple], setting: str = "") -> None:
    """Give the database this setting and no other, and make clients connect again."""
    dba.execute(f"alter database {dba.info.dbname} reset all")  # type: ignore[arg-type]
    if setting:
        dba.execute(f"alter database {dba.info.dbname} set {setting}")  # type: ignore[arg-type]
    dba.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = 'token-tracking' and datname = current_database()"
    )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("statement_timeout = '1ms'", "57014: statement_timeout of this role, database or server"),
        ("default_transaction_read_only = on", "25006: the server or this database or role"),
        ("transaction_timeout = '2ms'", "25P04: transaction_timeout of this role, database"),
    ],
)
def test_a_setting_that_keeps_all_from_being_written_is_named(
    database: Database, caplog: pytest.LogCaptureFixture, setting: str, said: str
):
    """Reported once; calls in the meantime are kept, and recorded after the fix."""
    with (
        UsageTracker(dsn=database.url, max_wait=1) as tracker,
        slow_database(database) as dba,
    ):
        assert tracker.track_token_usage_sync("a", 1) is True
        set_anew(dba, setting)
        for _ in range(5):
            assert tracker.track_token_usage_sync("a", 1) is True
            time.sleep(0.1)
        assert tracker.stats().spooled == 5
        until(lambda: said in caplog.text, 5, "named")
        time.sleep(0.5)
        assert caplog.text.count(said) == 1
        set_anew(dba)
        until(lambda: dba.execute(EVENTS).fetchone() == (6,), 10, "all are in")


def test_an_outage_of_two_causes_names_each_one_once(
    database: Database, caplog: pytest.LogCaptureFixture
):
    causes = {
        "default_transaction_read_only = on": "25006: the server or this database or role",
        "statement_timeout = '1ms'": "57014: statement_timeout of this role, database or server",
    }
    caplog.set_level("DEBUG", logger="token_tracking")
    with (
        UsageTracker(dsn=database.url, max_wait=1) as tracker,
        slow_database(database) as dba,
    ):
        assert tracker.track_token_usage_sync("a", 1) is True
        for setting in [*causes, *causes]:
            state = causes[setting].split(":")[0]
            before = caplog.text.count(state)
            set_anew(dba, setting)
            tracker.track_token_usage_sync("a", 1)
            until(lambda: caplog.text.count(state) > before, 10, setting)  # noqa: B023
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    for said in causes.values():
        assert sum(said in warning for warning in warnings) == 1, warnings
