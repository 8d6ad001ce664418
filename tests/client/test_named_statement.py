"""The statement that records batches, prepared under a name that servers and poolers may lose."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg.generators import execute

from tests.support.databases import Database
from tests.support.proxy import Proxy, socket_path
from tests.support.spooled import request
from token_tracking.client.connection import Connection
from token_tracking.client.delivery import Delivery
from token_tracking.client.named_statement import NamedStatement
from token_tracking.client.requests import Outcome

EVENTS = "select count(*)::int from token_tracking_raw.usage_events"
PREPARED = "select name, statement from pg_prepared_statements"
EXECUTIONS = "select (generic_plans + custom_plans)::int from pg_prepared_statements"
BATCH = "token_tracking_raw.track_token_usage_batch(json)"
# The same procedure again, from its source.
DROPPED_AND_CREATED = f"""
    do $$
    declare
        source text := pg_get_functiondef('{BATCH}'::regprocedure);
    begin
        drop function {BATCH};
        execute source;
    end $$
"""
OTHER_RESULT_TYPE = f"""
    alter function {BATCH} rename to original_batch;
    create function {BATCH.replace("json", "events json")}
    returns table (
        recorded numeric, duplicates bigint, conflicts bigint, rejected bigint, problems jsonb
    )
    language sql as 'select * from token_tracking_raw.original_batch(events)'
"""
_numbers = itertools.count()


@pytest.fixture
def connection(emptied: Database) -> Iterator[Connection]:
    with closing(Connection.open(emptied.url, patience=5)) as connection:
        yield connection


def sent(connection: Connection, times: int = 1) -> None:
    """Send events one by one, each of which must be recorded at once, on this connection."""
    for _ in range(times):
        delivery = Delivery([request(f"k{next(_numbers)}")])
        delivery.send(connection)
        assert delivery.outcomes[Outcome.RECORDED] == 1
        assert delivery.pending() == []
        assert connection.is_idle()


def name_of(connection: Connection) -> str:
    [(name, _)] = connection.execute(PREPARED).fetchall()
    return str(name)


def test_what_is_sent_often_is_prepared(emptied: Database, connection: Connection):
    sent(connection, 5)
    assert connection.execute(PREPARED).fetchall() == []
    sent(connection, 3)
    assert connection.execute(EXECUTIONS).fetchall() == [(3,)]
    with closing(Connection.open(emptied.url, patience=5)) as another:
        sent(another, 6)
        assert another.execute(PREPARED).fetchall() == connection.execute(PREPARED).fetchall()
    assert len(name_of(connection)) < 64
    assert emptied.value(EVENTS) == 14


@pytest.mark.parametrize("reset", ["deallocate all", "discard all"])
def test_a_lost_statement_is_sent_as_text(emptied: Database, connection: Connection, reset: str):
    sent(connection, 7)
    pid = connection.info.backend_pid
    connection.execute(reset)
    sent(connection)
    assert connection.execute(PREPARED).fetchall() == []
    sent(connection, 2)
    assert connection.execute(EXECUTIONS).fetchall() == [(2,)]
    assert connection.info.backend_pid == pid
    assert emptied.value(EVENTS) == 10


def test_a_name_that_exists_is_used(emptied: Database, connection: Connection):
    """As behind a pooler, which gives the server connection to another client."""
    sent(connection, 6)
    connection._batch = NamedStatement("track_token_usage_batch", connection._batch.text.decode())
    sent(connection, 8)
    assert connection.execute(EXECUTIONS).fetchall() == [(4,)]
    assert emptied.value(EVENTS) == 14


def test_another_text_has_another_name(emptied: Database, connection: Connection):
    """Clients of different versions share the server connections of a pooler."""
    ours = connection._batch
    theirs = NamedStatement("track_token_usage_batch", "select 7, 0, $1, $2, null -- another one")
    theirs.begin_to_prepare(connection.pgconn)
    connection.wait(execute(connection.pgconn))
    sent(connection, 8)
    assert ours.name != theirs.name
    assert len(connection.execute(PREPARED).fetchall()) == 2
    assert emptied.value(EVENTS) == 8


def test_the_second_attempt_has_the_time_that_is_left(connection: Connection):
    timeouts: list[float | None] = []
    wait = connection.wait

    def slow_wait(gen, interval: float = 0.1, timeout: float | None = None):
        timeouts.append(timeout)
        result = wait(gen, interval, timeout)
        time.sleep(0.5)
        return result

    sent(connection, 7)
    connection.execute("deallocate all")
    connection.wait = slow_wait  # type: ignore[method-assign]
    connection.patience = 2
    connection.record(b"[]")
    [first, second] = timeouts
    assert first is None
    assert second is not None
    assert second <= 1.5


def test_a_session_that_is_always_reset_stops_preparing(emptied: Database, connection: Connection):
    """As with server_reset_query_always: each missing statement would cost a round trip."""
    prepared = 0
    for _ in range(60):
        sent(connection)
        prepared += bool(connection.execute(PREPARED).fetchall())
        connection.execute("discard all")
    assert 0 < prepared < 30
    sent(connection, 2)
    assert connection.execute(PREPARED).fetchall() == []
    assert emptied.value(EVENTS) == 62


@pytest.mark.parametrize(
    ("change", "is_kept"),
    [
        (f"alter function {BATCH} set enable_sort = on", True),
        (DROPPED_AND_CREATED, True),
        (OTHER_RESULT_TYPE, False),
        ("alter table token_tracking_raw.usage_events add column note text", True),
    ],
    ids=["altered", "dropped and created", "other result type", "table altered"],
)
def test_a_procedure_replaced_under_way(database: Database, change: str, is_kept: bool):
    with closing(Connection.open(database.url, patience=5)) as connection:
        sent(connection, 12)
        with closing(database.connect()) as somebody:
            somebody.execute(change)  # type: ignore[arg-type]
        pid = connection.info.backend_pid
        sent(connection, 12)
        assert connection.info.backend_pid == pid
        [(executions,)] = connection.execute(EXECUTIONS).fetchall()
        assert (executions == 19) is is_kept
        assert not connection.is_to_prepare()
    assert database.value(EVENTS) == 24


def test_a_procedure_that_is_gone_is_an_outage(database: Database):
    with closing(Connection.open(database.url, patience=5)) as connection:
        sent(connection, 7)
        with closing(database.connect()) as somebody:
            somebody.execute(f"alter function {BATCH} rename to gone")
        delivery = Delivery([request("x")])
        with pytest.raises(psycopg.errors.UndefinedFunction):
            delivery.send(connection)
        assert len(delivery.pending()) == 1
        with closing(database.connect()) as somebody:
            somebody.execute(
                "alter function token_tracking_raw.gone rename to track_token_usage_batch"
            )
        delivery.send(connection)
        assert delivery.outcomes[Outcome.RECORDED] == 1
    assert database.value(EVENTS) == 8


def test_what_cannot_be_prepared_is_still_sent(emptied: Database, connection: Connection):
    """A statement that fails only when prepared, as behind a pooler that refuses these."""
    text, connection._batch.text = connection._batch.text, b"select nothing"
    connection._batch._executions = 5
    connection.prepare()
    connection._batch.text = text
    sent(connection, 3)
    assert connection.execute(PREPARED).fetchall() == []


@pytest.fixture
def proxied(emptied: Database) -> Iterator[tuple[Proxy, Connection]]:
    """A connection through something that can change what is sent."""
    proxy = Proxy(socket_path(emptied.env["PGHOST"]))
    try:
        dsn = proxy.dsn(emptied.env["PGDATABASE"])
        with closing(Connection.open(dsn, patience=5)) as connection:
            yield proxy, connection
    finally:
        proxy.close()


def test_a_pooler_that_renames_is_not_told_twice(
    emptied: Database, proxied: tuple[Proxy, Connection]
):
    """PgBouncer from 1.21 on disconnects a client that prepares a name a second time."""
    proxy, connection = proxied
    name = connection._batch.name
    proxy.renamed = name, b"PGBOUNCER_7".ljust(len(name), b"_")
    sent(connection, 7)
    assert name_of(connection).startswith("PGBOUNCER_7")
    assert proxy.prepared == 1
    connection.execute("deallocate all")
    sent(connection, 10)
    assert proxy.prepared == 1
    assert emptied.value(EVENTS) == 17


def test_a_session_that_ends_while_it_prepares_loses_nothing(
    emptied: Database, proxied: tuple[Proxy, Connection]
):
    _, connection = proxied
    sent(connection, 5)
    with closing(emptied.connect()) as somebody:
        somebody.execute("select pg_terminate_backend(%s)", (connection.info.backend_pid,))
    delivery = Delivery([request("x")])
    with pytest.raises(psycopg.OperationalError):
        delivery.send(connection)
    [one] = delivery.pending()
    assert not one.uncertain  # nothing was sent, so a fallback may still count it
