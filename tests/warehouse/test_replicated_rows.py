"""Raw rows that logical replication copies from another database count like any others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import NOT_DURABLE, Database, server_folder
from tests.support.project import DbtProject
from tests.support.waiting import until
from tests.support.warehouse import Event, Warehouse
from token_tracking.embedded.server import Server
from token_tracking.raw.schema import apply_schema

HOUR = datetime(2026, 3, 1, 10, tzinfo=UTC)
TABLES = ("usage_events", "usage_voids", "agent_owners")


@pytest.fixture
def central() -> Iterator[tuple[Warehouse, list[Warehouse]]]:
    """A database that subscribes to the raw tables of two others of its server."""
    folder = server_folder()
    server = Server(folder / "data", settings={**NOT_DURABLE, "wal_level": "logical"})
    names = ["central", "north", "south"]
    try:
        server.start()
        warehouses: list[Warehouse] = []
        with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
            for name in names:
                connection.execute(f"create database {name}")  # type: ignore[arg-type]
        for name in names:
            with closing(psycopg.connect(server.url(name))) as connection:
                apply_schema(connection)
            warehouses.append(Warehouse(Database(server.url(name), server.environment(name))))
        for name, publisher in zip(names[1:], warehouses[1:], strict=True):
            publisher.insert([Event(f"{name}-copied", HOUR, agent="bot")])
            with closing(publisher.connect()) as connection:
                connection.execute(
                    "create publication usage for table "
                    + ", ".join(f"token_tracking_raw.{table}" for table in TABLES)  # type: ignore[arg-type]
                )
                connection.execute(
                    f"select pg_create_logical_replication_slot('{name}', 'pgoutput')"
                )  # type: ignore[arg-type]
            with closing(warehouses[0].connect()) as connection:
                connection.execute(
                    f"create subscription {name} connection '{server.url(name)}'"  # type: ignore[arg-type]
                    " publication usage with (create_slot = false)"
                )
        yield warehouses[0], warehouses[1:]
    finally:
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def test_rows_of_two_publishers_are_counted_once(
    central: tuple[Warehouse, list[Warehouse]], tmp_path: Path
):
    warehouse, (north, south) = central

    def has(events: int, voids: int, owners: int) -> None:
        counts = ", ".join(
            f"(select count(*)::int from token_tracking_raw.{table})" for table in TABLES
        )
        until(
            lambda: warehouse.rows(f"select {counts}") == [(events, voids, owners)],
            what=f"{events} events, {voids} voids and {owners} owners are here",
        )

    def counted() -> int:
        warehouse.check()
        [(events,)] = warehouse.rows(
            "select sum(event_count)::int from token_tracking.hourly_token_usage"
        )
        return events

    def order(command: str) -> None:
        with closing(warehouse.connect()) as connection:
            for name in ("north", "south"):
                connection.execute(f"alter subscription {name} {command}")  # type: ignore[arg-type]

    has(2, 0, 0)
    project = DbtProject(warehouse.database.env, tmp_path)
    project.must("seed")
    project.must("run")
    assert counted() == 2

    # Their own transactions are older than the snapshot of the build that they are too late for.
    order("disable")
    north.insert([Event("north-late", HOUR)], voids=[("acme", "south-copied")])
    south.insert([Event("south-late", HOUR)], owners=[("bot", HOUR, "owner")])
    warehouse.insert([Event("central", HOUR)])
    project.must("run")
    order("enable")
    has(5, 1, 1)
    project.must("run")
    assert counted() == 4
    totals = warehouse.check()["hourly_token_usage"]
    runs = warehouse.status()

    # A row that a publisher blanks is not a new event.
    with closing(north.connect()) as connection:
        connection.execute("update token_tracking_raw.usage_events set conversation_id = 'erased'")
    until(
        lambda: (
            warehouse.rows(
                "select count(*)::int from token_tracking_raw.usage_events"
                " where conversation_id = 'erased'"
            )
            == [(2,)]
        )
    )
    project.must("run")
    assert {model: run for model, (run, _) in warehouse.status().items()} == {
        model: run for model, (run, _) in runs.items()
    }
    assert warehouse.check()["hourly_token_usage"] == totals
