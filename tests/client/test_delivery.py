"""The outcome of requests in rare cases: poison, clocks, locks, poolers, broken files, overload."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from tests.support.databases import Database
from tests.support.proxy import Proxy, socket_path
from tests.support.spooled import request as event
from tests.support.waiting import ended, until
from token_tracking import NotDurableError, UsageTracker
from token_tracking.client import complaints
from token_tracking.client.connection import Connection
from token_tracking.client.delivery import Delivery
from token_tracking.client.recovery import flush
from token_tracking.client.requests import Outcome, RejectionRequest, VoidRequest
from token_tracking.client.spool.spool import Spool, spool_files

EVENTS = "select count(*)::int from token_tracking_raw.usage_events"
REASONS = "select reason from token_tracking_raw.usage_event_rejections"
START = datetime(2026, 1, 1, tzinfo=UTC)


def delivered(database: Database, *requests: object) -> Delivery:
    delivery = Delivery(requests)  # type: ignore[arg-type]
    with closing(Connection.open(database.url)) as connection:
        delivery.send(connection)
    return delivery


def test_poison_that_no_row_can_hold_is_alone_refused(database: Database):
    """The first payload is not JSON, so its text is kept."""
    good = [event(f"{number}") for number in range(20)]
    delivery = delivered(
        database,
        *good[:7],
        event("x", '{"tenant_id": "a", "tokens": 7'),
        *good[7:],
        VoidRequest.of("a", "k\0", "why"),
        VoidRequest.of("a", "k", "why"),
    )
    assert delivery.pending() == []
    assert database.value(EVENTS) == 20
    assert +delivery.outcomes == {Outcome.RECORDED: 21, Outcome.REJECTED: 2}
    assert len(delivery.answered) == 23
    kept = "select payload::text, reason from token_tracking_raw.usage_event_rejections"
    (broken, _), (payload, reason) = sorted(database.rows(kept))
    assert json.loads(broken) == '{"tenant_id": "a", "tokens": 7'
    assert "u0000" in str(payload)
    assert str(reason).startswith("void: the database refuses it")


DEEP = 20_000


@pytest.mark.parametrize(
    "brackets",
    [("[" * DEEP, "]" * DEEP), ('{"a":' * DEEP + "1", "}" * DEEP)],
    ids=["lists", "objects"],
)
def test_json_too_deep_for_the_server_stops_no_other(
    each_database: Database, tmp_path: Path, brackets: tuple[str, str]
):
    """The event fails the cast to json, and so the whole statement, with or without the spool."""
    metadata = f'{{"a":{"".join(brackets)}}}'
    deep = event("x", f'{{"tenant_id": "a", "tokens": 7, "metadata": {metadata}}}')
    good = [event(f"{number}") for number in range(20)]
    refused = RejectionRequest(deep.payload, "kept by somebody else")
    delivery = delivered(each_database, *good[:7], deep, refused, *good[7:])
    assert delivery.pending() == []
    assert +delivery.outcomes == {Outcome.RECORDED: 20, Outcome.REJECTED: 2}
    spool = Spool.create(tmp_path / "spool", 2**30)
    spool.append([deep, refused, *good, event("new")])
    with closing(Connection.open(each_database.url)) as connection:
        told = sum((outcomes for outcomes in flush(spool, connection)), Counter())
    assert +told == {Outcome.RECORDED: 1, Outcome.DUPLICATE: 20, Outcome.REJECTED: 2}
    assert spool.is_empty()
    spool.close()
    assert each_database.value(EVENTS) == 21
    kept = "select payload::text from token_tracking_raw.usage_event_rejections"
    assert all("tenant_id" in payload for (payload,) in each_database.rows(kept))


def test_what_not_even_a_rejection_can_keep_stays_in_the_spool(database: Database, tmp_path: Path):
    """The request is skipped, logged and not counted, and is recorded when that is possible."""
    spool = Spool.create(tmp_path / "spool", 2**30)
    spool.append([event("1"), VoidRequest.of("a", "k\0", "why"), event("2")])
    with closing(Connection.open(database.url)) as connection:
        connection.execute(
            "alter table token_tracking_raw.usage_event_rejections"
            " add constraint nothing check (false) not valid"
        )
        assert [+outcomes for outcomes in flush(spool, connection)] == [{Outcome.RECORDED: 2}]
        assert [one.kind for _, one in spool.oldest(10, 2**20)] == ["void"]
        connection.execute(
            "alter table token_tracking_raw.usage_event_rejections drop constraint nothing"
        )
        assert [+outcomes for outcomes in flush(spool, connection)] == [{Outcome.REJECTED: 1}]
    assert spool.is_empty()
    spool.close()
    assert len(database.rows(REASONS)) == 1


def test_a_key_that_came_in_between_is_a_race_and_no_poison(database: Database):
    """With an older snapshot, a transaction does not see the other one's row yet."""
    repeatable = f"{database.url}&options=-c%20default_transaction_isolation%3Drepeatable%5C%20read"
    barrier = threading.Barrier(4)
    told: list[bool] = []

    def work(number: int) -> None:
        with UsageTracker(dsn=repeatable, max_wait=20) as tracker:
            for turn in range(30):
                barrier.wait(20)
                told.append(tracker.record_agent_owner_sync(f"bot-{turn}", f"{number}", START))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [True] * 120
    owners = "select count(*)::int, max(revision)::int from token_tracking_raw.agent_owners"
    assert database.rows(owners) == [(120, 4)]


def test_a_rejection_whose_own_write_fails_stays_pending(database: Database):
    """A batch is bisected down to the poison; then the connection is lost."""
    delivery = Delivery([event("1"), event("x", '{"tokens": 7e999999}'), event("2")])
    with closing(Connection.open(database.url)) as connection:

        def lost(payload: bytes, reason: str) -> None:
            connection.pgconn.finish()
            raise psycopg.OperationalError

        begin = connection.begin_to_record
        connection.begin_to_record = failing_for(begin, b"7e999999")  # type: ignore[method-assign]
        connection.reject = lost  # type: ignore[method-assign]
        with pytest.raises(psycopg.OperationalError):
            delivery.send(connection)
    assert "x" in [request.order[1] for request in delivery.pending()]
    with closing(Connection.open(database.url)) as connection:
        delivery.send(connection)
    assert delivery.pending() == []
    assert len(delivery.answered) == 3


def test_what_fails_at_the_commit_is_not_recorded(database: Database):
    """The row `recorded` arrives before the commit; an error of the commit follows the row."""
    with closing(database.connect()) as connection:
        connection.execute("""
            create function token_tracking_raw.refuse() returns trigger language plpgsql as $$
            begin
                raise exception using errcode = '40001';
            end $$;
            create constraint trigger refuse after insert on token_tracking_raw.usage_events
            deferrable initially deferred for each row execute function token_tracking_raw.refuse()
        """)
    with closing(Connection.open(database.url)) as connection:
        with pytest.raises(psycopg.errors.SerializationFailure):
            connection.record(b'[{"tenant_id": "a", "idempotency_key": "k", "tokens": 7}]')
        assert connection.is_idle()
    with UsageTracker(dsn=database.url, max_wait=0.5) as tracker:
        assert tracker.track_token_usage_sync("a", 7) is True
        assert (tracker.stats().recorded, tracker.stats().spooled) == (0, 1)
        with closing(database.connect()) as connection:
            connection.execute("drop trigger refuse on token_tracking_raw.usage_events")
    assert database.value(EVENTS) == 1


def failing_for(begin, mark: bytes):
    def fails(payload: bytes) -> None:
        if mark in payload:
            raise psycopg.errors.NumericValueOutOfRange
        begin(payload)

    return fails


@pytest.mark.parametrize("name", ["lone \ud800 surrogate", "with a \0 in it", "\U0001f600" * 300])
def test_a_field_that_no_text_can_hold_harms_nobody(database: Database, name: str):
    with UsageTracker(dsn=database.url, max_wait=1) as tracker:
        calls = [{"tenant_id": "a", "tokens": 7}, {"tenant_id": "a", name: 1}]
        assert tracker.track_many_sync(calls * 2) == [True, False] * 2
        assert tracker.stats().recorded == tracker.stats().rejected == 2
    assert "unknown field" in str(database.rows(REASONS))


def test_the_same_in_the_spool(database: Database, tmp_path: Path):
    with UsageTracker(dsn="host=/nonexistent", max_wait=0.3) as tracker:
        assert tracker.track_many_sync([{"\ud800": 1}, {"tenant_id": "a", "tokens": 7}]) == [
            False,
            True,
        ]
    with UsageTracker(dsn=database.url):
        until(lambda: database.value(EVENTS) == 1)


class Hostile:
    """A value whose every method fails."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError("canary")

    def __str__(self) -> str:
        raise RuntimeError("canary")


class HostileMapping(dict):
    def items(self):
        raise RuntimeError("canary")

    def __iter__(self):
        raise RuntimeError("canary")


@pytest.mark.parametrize(
    "arguments",
    [
        {"tenant_id": Hostile()},
        {"tokens": Hostile()},
        {"occurred_at": Hostile()},
        {"idempotency_key": Hostile()},
        {"tenant_id": Hostile(), "metadata": {"a": Hostile()}},
    ],
)
def test_values_that_fail_are_refused_and_kept_never_raised(
    database: Database, caplog: pytest.LogCaptureFixture, arguments: dict[str, object]
):
    with UsageTracker(dsn=database.url) as tracker:
        assert (
            tracker.track_token_usage_sync(**{"tenant_id": "a", "tokens": 1, **arguments}) is False
        )  # type: ignore[arg-type]
        assert ended(tracker.stats()) == 1
    assert "canary" not in caplog.text


@pytest.mark.parametrize(
    "metadata", [{"a": Hostile()}, {Hostile(): 1}, HostileMapping(a=1), {"a": 10**5000}], ids=type
)
def test_values_that_fail_in_metadata_cost_no_event(
    database: Database, caplog: pytest.LogCaptureFixture, metadata: dict[str, object]
):
    with UsageTracker(dsn=database.url) as tracker:
        assert tracker.track_token_usage_sync("a", 1, metadata=metadata) is True
        assert tracker.stats().recorded == 1
    assert "canary" not in caplog.text


def test_events_ahead_of_the_servers_clock_wait(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The client's clock is wrong: acknowledged, and later neither lost nor refused."""
    ahead = timedelta(minutes=5, seconds=3)

    class Ahead(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + ahead

    monkeypatch.setattr("token_tracking.client.calls.datetime", Ahead)
    monkeypatch.setattr("token_tracking.client.connection.datetime", Ahead)
    real = time.time
    monkeypatch.setattr("token_tracking.client.connection.time.time", lambda: real() + 303)
    with UsageTracker(dsn=database.url) as tracker:
        assert tracker.track_many_sync(
            [
                {"tenant_id": "a", "tokens": 1},
                {"tenant_id": "b", "tokens": 1, "occurred_at": "2026-01-01T00:00:00Z"},
            ]
        ) == [True, True]
        assert (tracker.stats().recorded, tracker.stats().spooled) == (1, 1)
        until(lambda: database.value(EVENTS) == 2, 20, "its time has come")
        until(lambda: tracker.stats().flushed == {"recorded": 1})
    assert database.rows(REASONS) == []
    assert "clock is 303 s ahead" in caplog.text


def test_an_unreadable_row_stays_and_holds_nothing_back(
    database: Database,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("token_tracking.client.recovery._LOOK_SECONDS", 0.1)
    folder = tmp_path / "spool"
    other = Spool.create(folder, 2**30)
    other.append([event(f"{number}") for number in range(500)])
    path = other.path
    other.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "update requests set kind = 'from the future', checksum = null where number = 250"
        )
    good = Spool.create(folder, 2**30)
    good.append([event("good")])
    good.close()
    told = f"{path} keeps 1 row(s) of a kind that is not known here"
    with UsageTracker(dsn=database.url, spool_dir=folder) as tracker:
        until(lambda: database.value(EVENTS) == 500, what="all the good ones are in")
        assert tracker.track_token_usage_sync("b", 1) is True
        assert tracker.stats().recorded == 1
        until(lambda: told in caplog.text)
        time.sleep(0.5)  # several intervals
        assert caplog.text.count(told) == 1
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("select number from requests").fetchall() == [(250,)]
        with connection:
            connection.execute("update requests set kind = 'event'")
    with UsageTracker(dsn=database.url, spool_dir=folder):
        until(lambda: database.value(EVENTS) == 502, what="and that one, by who knows it")
        until(lambda: not path.exists())


def test_a_broken_file_of_another_process_stops_nothing(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """In one file, a byte of one row is changed, so that row stays; in the other, every byte is."""
    folder = tmp_path / "spool"
    other = Spool.create(folder, 2**30)
    other.append([event(f"{number}") for number in range(500)])
    path = other.path
    other.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "update requests set payload = cast(payload as text) || x'ff' where number = 250"
        )
    (folder / "all.sqlite").write_bytes(b"this is no database" * 100)
    with UsageTracker(dsn=database.url, spool_dir=folder) as tracker:
        until(lambda: database.value(EVENTS) == 499, what="the good ones are in")
        assert tracker.track_token_usage_sync("b", 1) is True
        until(lambda: "all.sqlite cannot be read" in caplog.text)
        until(lambda: "1 row(s) that the disk has changed (number 250)" in caplog.text)
    rejections = "select count(*)::int from token_tracking_raw.usage_event_rejections"
    assert database.value(rejections) == 0
    assert [(file.requests, file.damaged) for file in spool_files(folder) if file.requests] == [
        (1, 1)
    ]


def test_a_spool_file_that_is_removed_is_replaced(tmp_path: Path):
    folder = tmp_path / "spool"
    with UsageTracker(dsn="host=/nonexistent", max_wait=0.3, spool_dir=folder) as tracker:
        assert tracker.track_token_usage_sync("a", 1) is True
        for path in folder.iterdir():
            path.unlink()
        assert tracker.track_token_usage_sync("a", 1) is True
    [path] = folder.glob("*.sqlite")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("select count(*) from requests").fetchone() == (2,)


def test_a_full_disk_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, max_bytes: int | None) -> sqlite3.Connection:
        path.touch()
        raise sqlite3.OperationalError

    monkeypatch.setattr("token_tracking.client.spool.spool._opened", full)
    folder = tmp_path / "spool"
    with UsageTracker(dsn="host=/nonexistent", max_wait=0.3, spool_dir=folder) as tracker:
        assert tracker.track_many_sync([{"tenant_id": "a", "tokens": 1}] * 3) == [False] * 3
    assert list(folder.iterdir()) == []


def test_what_is_spooled_stays_until_it_is_committed(database: Database):
    """Connections are cut during a flush, before the server has received the batch."""
    proxy = Proxy(socket_path(database.env["PGHOST"]))
    proxy.refusing = True
    with UsageTracker(dsn=proxy.dsn(database.env["PGDATABASE"]), max_wait=0.3) as tracker:
        assert tracker.track_many_sync([{"tenant_id": "a", "tokens": 7}] * 50) == [True] * 50
        proxy.drop_batches = 3
        proxy.refusing = False
        until(lambda: database.value(EVENTS) == 50, 5, "all are in")
        assert proxy.drop_batches == 0
        until(lambda: tracker.stats().flushed == {"recorded": 50})
    proxy.close()


def test_the_spool_waits_for_the_disk_at_each_commit(tmp_path: Path):
    spool = Spool.create(tmp_path / "spool", 2**30)
    for pragma, value in (("synchronous", 2), ("journal_mode", "wal")):
        assert spool._connection.execute(f"pragma {pragma}").fetchone() == (value,)
    spool.close()


def test_a_drained_spool_gives_the_disk_back(tmp_path: Path):
    spool = Spool.create(tmp_path / "spool", 2**30)
    spool.append([event(f"{number}", '{"x": "' + "x" * 9000 + '"}') for number in range(1000)])
    assert spool.path.stat().st_size + Path(f"{spool.path}-wal").stat().st_size > 9_000_000
    spool.forget([number for number, _ in spool.oldest(1000, 2**40)])
    spool.shrink()
    assert spool.path.stat().st_size + Path(f"{spool.path}-wal").stat().st_size < 100_000
    spool.append([event("more")])
    assert [found.order for _, found in spool.oldest(10, 2**20)] == [("a", "more")]
    spool.close()


@pytest.mark.parametrize(
    ("break_", "mend"),
    [
        (
            "alter function token_tracking_raw.track_token_usage_batch rename to gone",
            "alter function token_tracking_raw.gone rename to track_token_usage_batch",
        ),
        (
            "alter database {name} set default_transaction_read_only = on",
            "alter database {name} reset default_transaction_read_only",
        ),
        (
            "revoke usage on schema token_tracking_raw from clerk",
            "grant usage on schema token_tracking_raw to clerk",
        ),
        (
            "alter role clerk connection limit 0",
            "alter role clerk connection limit -1",
        ),
    ],
    ids=["function missing", "read-only", "no permission", "too many connections"],
)
def test_a_server_that_takes_nothing_is_an_outage(database: Database, break_: str, mend: str):
    name = database.env["PGDATABASE"]
    role = f"clerk_{name}"

    def run(*statements: str) -> None:
        with closing(database.connect()) as connection:
            connection.execute("set default_transaction_read_only = off")
            for statement in statements:
                connection.execute(statement.format(name=name).replace("clerk", role))

    cut = (
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = 'token-tracking' and datname = current_database()"
    )
    run(
        "create role clerk login",
        "grant usage on schema token_tracking_raw to clerk",
        "grant execute on all functions in schema token_tracking_raw to clerk",
    )
    try:
        dsn = database.url.replace("postgres@", f"{role}@")
        with UsageTracker(dsn=dsn, max_wait=1) as tracker:
            assert tracker.track_token_usage_sync("a", 1) is True
            run(break_, cut)
            assert [tracker.track_token_usage_sync("a", 1) for _ in range(20)] == [True] * 20
            assert tracker.stats().spooled == 20
            run(mend)
            until(lambda: database.value(EVENTS) == 21)
            until(lambda: tracker.track_token_usage_sync("a", 1) and tracker.stats().recorded > 1)
    finally:
        run("drop owned by clerk", "drop role clerk")


def test_after_a_failover_the_host_that_writes_is_found(database: Database):
    """The first host of the connection string is a server that is now read-only."""
    name = database.env["PGDATABASE"]
    proxies = [Proxy(socket_path(database.env["PGHOST"])) for _ in range(2)]
    hosts = f"host=127.0.0.1,localhost port={proxies[0].port},{proxies[1].port}"
    with UsageTracker(
        dsn=f"{hosts} user=postgres dbname={name} sslmode=disable", max_wait=2
    ) as tracker:
        assert tracker.track_token_usage_sync("a", 1) is True
        assert proxies[0].links
        assert not proxies[1].links
        proxies[0].refusing = True
        proxies[0].cut()
        assert tracker.track_token_usage_sync("a", 1) is True
        assert tracker.stats().recorded == 2
        assert proxies[1].links
    for proxy in proxies:
        proxy.close()


def test_of_several_hosts_one_that_writes_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def connect(conninfo: str, **_: object) -> None:
        asked.append(conninfo)
        raise psycopg.OperationalError

    monkeypatch.setattr(Connection, "connect", connect)
    for dsn in ("host=a,b", "host=a", "host=a,b target_session_attrs=any"):
        with pytest.raises(psycopg.OperationalError):
            Connection.open(dsn)
    assert ["read-write" in one for one in asked] == [True, False, False]


def test_a_slow_name_server_stalls_neither_loop_nor_calls(monkeypatch: pytest.MonkeyPatch):
    def slow(*_: object, **__: object) -> list[object]:
        time.sleep(1.5)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def main(tracker: UsageTracker) -> float:
        call = asyncio.create_task(tracker.track_token_usage("a", 1))
        worst = 0.0
        while not call.done():
            before = time.perf_counter()
            await asyncio.sleep(0.002)
            worst = max(worst, time.perf_counter() - before - 0.002)
        assert await call is True
        return worst

    with UsageTracker(dsn="host=db.example.invalid", max_wait=0.6) as tracker:
        assert asyncio.run(main(tracker)) < 0.05
        assert tracker.stats().spooled == 1


def test_what_waits_in_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The disk hangs: calls are refused at once, not queued without end."""
    hangs = threading.Event()
    monkeypatch.setattr(Spool, "append", lambda *_: hangs.wait(20))

    async def main(tracker: UsageTracker) -> None:
        metadata = {"text": "x" * 16000}
        calls = [
            asyncio.create_task(tracker.track_token_usage("a", 1, metadata=metadata))
            for _ in range(6000)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        refused = sum(call.done() and call.result() is False for call in calls)
        assert 1500 < refused < 3000
        assert tracker.stats().waiting == 6000 - refused
        hangs.set()
        assert sum(await asyncio.gather(*calls)) == 6000 - refused

    with UsageTracker(dsn="host=/nonexistent", max_wait=60) as tracker:
        try:
            asyncio.run(main(tracker))
        finally:
            hangs.set()
        assert tracker.stats().refused + tracker.stats().spooled == ended(tracker.stats()) == 6000


@pytest.mark.timed
def test_a_disk_that_hangs_holds_no_later_calls(monkeypatch: pytest.MonkeyPatch):
    hangs = threading.Event()
    monkeypatch.setattr(Spool, "append", lambda *_: hangs.wait(20))
    with UsageTracker(dsn="host=/nonexistent", max_wait=0.2) as tracker:
        first = threading.Thread(target=tracker.track_token_usage_sync, args=("a", 1))
        first.start()
        time.sleep(0.8)
        started = time.monotonic()
        assert tracker.track_token_usage_sync("a", 1) is False
        assert time.monotonic() - started < 0.2
        hangs.set()
        first.join()


def test_refused_payloads_are_written_together(database: Database):
    with UsageTracker(dsn=database.url, max_wait=20) as tracker:
        bad = [{"tenant_id": "a", "tokens": -number} for number in range(1, 1001)]
        started = time.monotonic()
        assert tracker.track_many_sync(bad) == [False] * 1000
        assert time.monotonic() - started < 5
    transactions = (
        "select count(distinct ingest_xid) from token_tracking_raw.usage_event_rejections"
    )
    assert len(database.rows(REASONS)) == 1000
    assert int(str(database.value(transactions))) < 50
    assert tracker.stats().rejected == 1000


def test_a_flood_of_bad_calls_does_not_flood_the_log(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(complaints.complaints, "_room", 30.0)
    # Otherwise the limit would grant one more line per second since another test's last complaint.
    monkeypatch.setattr(complaints.complaints, "_at", time.monotonic())
    with UsageTracker(dsn=database.url) as tracker:
        assert tracker.track_many_sync([{"tenant_id": "a", "tokens": -1}] * 500) == [False] * 500
        assert 30 <= len(caplog.records) < 100
        monkeypatch.setattr(complaints.complaints, "_room", 30.0)
        tracker.track_token_usage_sync("a", -1)
        assert "such lines were left out" in caplog.text
        assert tracker.stats().rejected == 501


def test_the_fallback_gets_the_arguments_as_given():
    received: list[dict[str, object]] = []

    def old_implementation(**arguments: object) -> bool:
        received.append(arguments)
        return True

    metadata = {"at": datetime(2026, 1, 1, tzinfo=UTC), "id": UUID(int=3), "set": (1, 2)}
    tenant, agent = UUID(int=1), UUID(int=2)
    with UsageTracker(
        dsn="host=/nonexistent",
        max_wait=0.5,
        spool_dir="/proc/nowhere",
        fallback=old_implementation,
    ) as tracker:
        told = tracker.track_token_usage_sync(
            tenant, 7, "m", agent, "talk", "books", "LLM ", "Chat", metadata, "key"
        )
        assert told is True
        assert tracker.track_many_sync([{"tenant_id": tenant, "output_tokens": 3}]) == [True]
    assert received[0] == {
        "tenant_id": tenant,
        "tokens": 7,
        "model": "m",
        "agent_id": agent,
        "conversation_id": "talk",
        "collection_id": "books",
        "token_type": "LLM ",
        "operation": "Chat",
        "metadata": metadata,
        "idempotency_key": "key",
    }
    assert received[0]["metadata"] is metadata
    assert received[0]["tenant_id"] is tenant
    key = received[1].pop("idempotency_key")
    assert isinstance(key, str)
    assert received[1] == {
        **dict.fromkeys(received[1]),
        "tenant_id": tenant,
        "tokens": 3,
        "token_type": "llm",
        "operation": "query",
    }


@pytest.mark.timed
def test_a_fallback_that_hangs_holds_neither_memory_nor_calls():
    hangs = threading.Event()
    with UsageTracker(
        dsn="host=/nonexistent",
        max_wait=0.2,
        spool_dir="/proc/nowhere",
        fallback=lambda **_: hangs.wait(20),
    ) as tracker:

        async def main() -> list[bool]:
            calls = [tracker.track_token_usage("a", 1) for _ in range(1500)]
            return await asyncio.gather(*calls)

        started = time.monotonic()
        assert asyncio.run(main()) == [False] * 1500
        assert time.monotonic() - started < 2
        stats = tracker.stats()
        assert stats.refused >= 490
        assert stats.refused + stats.fallback == 1500
        hangs.set()


def test_writers_that_share_keys_never_deadlock(database: Database):
    """Both sides sort: calls in any order, and batches of any other language."""
    keys = [f"{number:03}" for number in range(200)]
    barrier = threading.Barrier(4)

    def work(step: int) -> None:
        with UsageTracker(dsn=database.url, max_wait=10) as tracker:
            for round_ in range(15):
                barrier.wait(20)
                tracker.track_many_sync(
                    {"tenant_id": "a", "tokens": 7, "idempotency_key": f"{round_}-{key}"}
                    for key in keys[::step]
                )

    threads = [threading.Thread(target=work, args=(step,)) for step in (1, -1, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.value(EVENTS) == 3000
    deadlocks = "select deadlocks::int from pg_stat_database where datname = current_database()"
    time.sleep(0.2)
    assert database.value(deadlocks) == 0


def test_what_was_spooled_in_a_burst_is_in_at_the_end(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    """A burst above the queue's limit is spooled; a container's disk may be lost with it."""
    # The writer must send nothing before all calls wait, however fast it is.
    all_wait = threading.Event()
    send = Delivery.send

    def send_then(self: Delivery, *args: object, **options: object) -> None:
        assert all_wait.wait(20)
        send(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Delivery, "send", send_then)
    monkeypatch.setattr("token_tracking.client.writer._MOST_WAITING", 100)
    with UsageTracker(dsn=database.url, max_wait=20) as tracker:

        async def main() -> list[bool]:
            calls = [asyncio.ensure_future(tracker.track_token_usage("a", 1)) for _ in range(9000)]
            await asyncio.to_thread(until, lambda: tracker.stats().waiting == 9000)
            all_wait.set()
            return await asyncio.gather(*calls)

        assert asyncio.run(main()) == [True] * 9000
    assert tracker.stats().spooled > 0
    assert tracker.stats().flushed == {"recorded": tracker.stats().spooled}
    assert database.value(EVENTS) == 9000
    assert ended(tracker.stats()) == 9000


@pytest.mark.timed
def test_a_flush_without_answer_does_not_hold_the_end(database: Database, tmp_path: Path):
    """Spooled requests are safe; the thread closes the file when its wait is over."""
    proxy = Proxy(socket_path(database.env["PGHOST"]))
    folder = tmp_path / "spool"
    tracker = UsageTracker(dsn=proxy.dsn(database.env["PGDATABASE"]), max_wait=0.5)
    with tracker:
        assert tracker.track_token_usage_sync("a", 7) is True
        proxy.swallowing = True
        assert tracker.track_token_usage_sync("a", 7) is True
        assert tracker.stats().spooled == 1
        time.sleep(0.5)
        started = time.monotonic()
    assert time.monotonic() - started < 4
    proxy.cut()
    proxy.close()
    until(lambda: not any(file.owned for file in spool_files(folder)), 30, "it lets go")
    with UsageTracker(dsn=database.url, spool_dir=folder):
        until(lambda: database.value(EVENTS) == 2, 30, "adopted")


def test_closed_means_refused_and_counted(database: Database):
    tracker = UsageTracker(dsn=database.url, on_error="raise").start()
    tracker.close()
    tracker.close()
    with pytest.raises(NotDurableError, match="closed"):
        tracker.track_token_usage_sync("a", 1)
    tracker.start()
    assert dataclasses.asdict(tracker.stats())["refused"] == 1


def test_the_functions_work_without_a_home(database: Database):
    script = (
        "import os, pwd\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "from token_tracking import track_token_usage_sync\n"
        "assert track_token_usage_sync('a', 1) is True\n"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path), "TOKEN_TRACKING_DSN": database.url},
        check=True,
        timeout=60,
    )
    assert database.value(EVENTS) == 1


def test_the_interpreters_end_writes_what_waits(database: Database):
    script = (
        "import sys, asyncio\n"
        "from token_tracking import UsageTracker\n"
        "tracker = UsageTracker(dsn=sys.argv[1])\n"
        "async def main():\n"
        "    for _ in range(100): asyncio.ensure_future(tracker.track_token_usage('a', 1))\n"
        "    await asyncio.sleep(0)\n"
        "asyncio.run(main())\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, database.url],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=True,
        timeout=60,
    )
    assert database.value(EVENTS) == 100


def test_debug_tells_how_each_call_ended_without_what_it_said(
    database: Database, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    """Through commit, conflict, refusal, spool and fallback: canaries stay out of every line."""
    caplog.set_level(logging.DEBUG)

    def old_implementation(**_: object) -> bool:
        raise ValueError("canary")

    canary = {"metadata": {"canary": "canary"}, "model": "canary"}
    with UsageTracker(dsn=database.url) as tracker:
        tracker.track_token_usage_sync("canary", 1, idempotency_key="k1", **canary)
        tracker.track_token_usage_sync("canary", 2, idempotency_key="k1", **canary)
        tracker.track_token_usage_sync("canary", -1, idempotency_key="k2", **canary)
        tracker.void_usage_sync("canary", "k3", "canary")
    down = "host=/nonexistent user=canary password=canary dbname=canary"
    with UsageTracker(dsn=down, max_wait=0.3, spool_dir=tmp_path / "other") as tracker:
        tracker.track_token_usage_sync("canary", 1, idempotency_key="k4", **canary)
    with UsageTracker(
        dsn=down, max_wait=0.3, spool_dir="/proc/nowhere", fallback=old_implementation
    ) as tracker:
        tracker.track_token_usage_sync("canary", 1, idempotency_key="k5", **canary)
    ours = [
        record.getMessage() for record in caplog.records if record.name.startswith("token_tracking")
    ]
    for line in (
        "call accepted as event k1",
        "event k1: recorded",
        "event k1: conflict",
        "void k3: recorded",
        "event k4: spooled",
        "gave a event to the fallback",
    ):
        assert line in ours
    assert any(line.startswith("committed a batch of 1 event(s)") for line in ours)
    assert "canary" not in caplog.text


@pytest.mark.timed
def test_the_spool_is_private_and_no_reader_holds_it(tmp_path: Path):
    folder = tmp_path / "spool"
    with UsageTracker(dsn="host=/nonexistent", max_wait=1, spool_dir=folder) as tracker:
        assert tracker.track_token_usage_sync("a", 1) is True
        [path] = folder.glob("*.sqlite")
        assert {file.stat().st_mode & 0o077 for file in folder.iterdir()} == {0}
        with closing(sqlite3.connect(path)) as somebody:
            somebody.execute("begin immediate")
            started = time.monotonic()
            assert tracker.track_token_usage_sync("a", 1) is True
            assert time.monotonic() - started < 1
    assert len(list(folder.glob("*.sqlite"))) == 2
