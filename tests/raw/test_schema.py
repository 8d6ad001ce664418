"""Applying the raw schema: repeatedly, concurrently, from an older version, on other servers."""

from __future__ import annotations

import threading
from contextlib import closing

import psycopg
import pytest

from tests.support.databases import Database
from tests.support.previous import apply_tables
from token_tracking.embedded.server import Server
from token_tracking.errors import SchemaError
from token_tracking.raw.schema import SchemaChange, SchemaVersion, apply_schema, packaged_versions

NEWEST = packaged_versions()[-1].number


@pytest.fixture
def empty_database(server: Server, database: Database) -> Database:
    with closing(database.connect()) as connection:
        connection.execute("drop schema token_tracking_raw cascade")
    return database


def apply(database: Database, versions: list[SchemaVersion] | None = None) -> SchemaChange:
    with closing(psycopg.connect(database.url)) as connection:
        change = apply_schema(connection, versions)
        connection.commit()
        return change


def test_versions_count_up_without_gaps():
    numbers = [version.number for version in packaged_versions()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_applying_twice_changes_nothing(empty_database: Database):
    assert apply(empty_database) == SchemaChange(0, NEWEST)
    assert apply(empty_database) == SchemaChange(NEWEST, NEWEST)


def test_an_older_database_with_events_is_upgraded_in_place(empty_database: Database):
    first = packaged_versions()
    assert apply(empty_database, first) == SchemaChange(0, NEWEST)
    call = "select token_tracking_raw.track_token_usage('acme', 12, p_idempotency_key => 'k')"
    assert empty_database.value(call) is True
    second = SchemaVersion(
        NEWEST + 1,
        "cost",
        "alter table token_tracking_raw.usage_events add column cost_usd numeric;"
        "create index on token_tracking_raw.usage_events (cost_usd)",
    )
    assert apply(empty_database, [*first, second]) == SchemaChange(NEWEST, NEWEST + 1)
    assert apply(empty_database, [*first, second]) == SchemaChange(NEWEST + 1, NEWEST + 1)
    row = empty_database.rows(
        "select tenant_id, tokens, cost_usd from token_tracking_raw.usage_events"
    )
    assert row == [("acme", 12, None)]
    assert empty_database.value(call.replace("'k'", "'l'")) is True
    with pytest.raises(
        SchemaError, match=f"version {NEWEST + 1} of the schema, .* knows {NEWEST}:"
    ):
        apply(empty_database, first)


def test_a_procedure_that_returned_less_is_replaced(empty_database: Database):
    apply_tables(empty_database, 2)
    with closing(empty_database.connect()) as connection:
        connection.execute(
            """
            create function token_tracking_raw.record_canonical_batch(
                events json, moment timestamptz, latest timestamptz,
                out recorded bigint, out suspects jsonb
            ) language sql as 'select 0, null::jsonb'
            """
        )
    assert apply(empty_database) == SchemaChange(2, NEWEST)
    call = "select token_tracking_raw.track_token_usage('acme', 12)"
    assert empty_database.value(call) is True
    assert empty_database.value("select count(*) from token_tracking_raw.usage_events") == 1


def test_the_event_type_of_before_gets_its_new_fields(empty_database: Database):
    apply(empty_database)
    drop = "alter type token_tracking_raw.usage_event drop attribute"
    with closing(empty_database.connect()) as connection:
        connection.execute(f"{drop} reasoning_tokens")
    assert apply(empty_database) == SchemaChange(NEWEST, NEWEST)
    call = "select token_tracking_raw.track_token_usage('acme', 12)"
    assert empty_database.value(call) is True
    with closing(empty_database.connect()) as connection:
        connection.execute(f"{drop} tokens")
    with pytest.raises(psycopg.errors.RaiseException, match="another order"):
        apply(empty_database)


def test_a_version_that_fails_leaves_what_was_there(empty_database: Database):
    first = packaged_versions()
    apply(empty_database, first)
    broken = SchemaVersion(
        NEWEST + 1, "broken", "create table token_tracking_raw.half (); select 1 / 0"
    )
    with pytest.raises(psycopg.errors.DivisionByZero):
        apply(empty_database, [*first, broken])
    assert empty_database.value("select to_regclass('token_tracking_raw.half')") is None
    assert apply(empty_database, first) == SchemaChange(NEWEST, NEWEST)


def test_many_at_once_are_as_one_after_the_other(empty_database: Database):
    changes: list[SchemaChange] = []
    threads = [
        threading.Thread(target=lambda: changes.append(apply(empty_database))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [SchemaChange(0, NEWEST)] + [SchemaChange(NEWEST, NEWEST)] * 7
    assert sorted(changes, key=lambda change: change.before) == expected


def test_applying_while_services_write_breaks_no_call(database: Database):
    stop = threading.Event()
    failures: list[Exception] = []
    calls: list[bool] = []

    def write() -> None:
        with closing(database.connect()) as connection:
            while not stop.is_set():
                try:
                    [(told,)] = connection.execute(
                        "select token_tracking_raw.track_token_usage('acme', 1)"
                    ).fetchall()
                    calls.append(told)
                except psycopg.Error as error:
                    failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(5):
        apply(database)
    stop.set()
    thread.join()
    assert failures == []
    assert all(calls)
    assert database.value("select count(*) from token_tracking_raw.usage_events") == len(calls) > 0


def test_rows_numbered_in_the_future_are_stamped_once(database: Database):
    with closing(database.connect()) as connection:
        for key in ("restored", "own"):
            connection.execute(
                "select token_tracking_raw.track_token_usage('acme', 1, p_idempotency_key => %s)",
                (key,),
            )
        connection.execute(
            "update token_tracking_raw.usage_events set ingest_xid = ingest_xid + 1000000"
            " where idempotency_key = 'restored'"
        )
        own = "select ingest_xid from token_tracking_raw.usage_events where idempotency_key = 'own'"
        before = database.value(own)
    assert apply(database) == SchemaChange(NEWEST, NEWEST, stamped=1)
    assert apply(database) == SchemaChange(NEWEST, NEWEST)
    assert database.value(own) == before
    future = (
        "select count(*) from token_tracking_raw.usage_events"
        " where ingest_xid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    )
    assert database.value(future) == 0


def test_an_apply_that_waits_for_a_reader_says_for_whom(empty_database: Database):
    apply_tables(empty_database, 3)
    with closing(psycopg.connect(empty_database.url, application_name="console")) as reader:
        reader.execute("select from token_tracking_raw.tenant_readers")
        with pytest.raises(
            SchemaError, match=r"tenant_readers by process \d+ \(user postgres, application console"
        ):
            apply(empty_database)
    assert apply(empty_database) == SchemaChange(3, NEWEST)


def test_an_apply_of_a_program_before_breaks_nothing(empty_database: Database):
    """An older program's apply holds an advisory lock, which this version ignores."""
    apply(empty_database)
    with closing(psycopg.connect(empty_database.url)) as older:
        older.execute("select pg_advisory_xact_lock(hashtextextended('token_tracking_raw', 0))")
        assert apply(empty_database) == SchemaChange(NEWEST, NEWEST)
