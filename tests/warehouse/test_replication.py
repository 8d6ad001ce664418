"""A database that publishes all tables: no statement fails for want of a replica identity."""

from __future__ import annotations

from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.support.databases import NOT_DURABLE, fresh_database, started_server
from tests.support.project import DbtProject
from tests.support.warehouse import Event, Warehouse
from token_tracking.raw.roles import Roles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.databases import Database

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
UNNAMED = """
    select tables.oid::regclass::text
    from pg_class as tables
    inner join pg_namespace as schemas on tables.relnamespace = schemas.oid
    where
        schemas.nspname ~ '^token_tracking'
        and tables.relkind in ('r', 'p')
        and not case tables.relreplident
            when 'd' then exists (
                select from pg_index where indrelid = tables.oid and indisprimary
            )
            when 'i' then true
            else tables.relreplident = 'f'
        end
    order by 1
"""
FORGET = """
    do $$
    declare name text;
    begin
        for name in
            select oid::regclass::text from pg_class
            where relreplident = 'f' and relnamespace::regnamespace::text ~ '^token_tracking'
        loop
            execute format('alter table %s replica identity default', name);
        end loop;
    end
    $$
"""


@pytest.fixture
def published() -> Iterator[Database]:
    for server in started_server(None, {**NOT_DURABLE, "wal_level": "logical"}):
        with contextmanager(fresh_database)(server) as database:
            yield database


def test_everything_goes_on_under_a_publication(published: Database, tmp_path: Path) -> None:
    """Also in a warehouse that was built before its tables had a replica identity."""
    warehouse = Warehouse(published)
    project = DbtProject(dict(published.env), tmp_path)
    with closing(published.connect()) as connection:
        Roles().apply(connection)
        warehouse.insert([Event("1", NOON, agent="bot"), Event("2", NOON, operation="dance")])
        project.must("build")
        assert warehouse.rows(UNNAMED) == []
        connection.execute(FORGET)
        assert len(warehouse.rows(UNNAMED)) > 10
        connection.execute("alter table token_tracking_raw.tenant_readers replica identity full")
        connection.execute("create publication everything for all tables")

        warehouse.insert(
            [Event("3", NOON + timedelta(days=1))],
            voids=[("acme", "2")],
            owners=[("bot", NOON - timedelta(days=1), "owner")],
        )
        project.must("build")
        project.must("test", "--select", "tag:full")
        assert warehouse.rows(UNNAMED) == []
        warehouse.check()

        connection.execute(
            "update token_tracking.int_usage__hourly set tokens = tokens + 1"
            " where usage_date = '2026-03-11'"
        )
        assert not project.run("test").green
        project.must("build", "--full-refresh")
        warehouse.insert([Event("4", NOON, operation="dance")])
        project.must("run", "--select", "config.materialized:token_tracking_rollup")
        project.must("seed")
        Roles().apply(connection)
        connection.execute("insert into token_tracking_raw.tenant_readers values ('r1', 'acme')")
        connection.execute("delete from token_tracking_raw.tenant_readers where role_name = 'r1'")
        assert warehouse.rows(UNNAMED) == []
    warehouse.check()
