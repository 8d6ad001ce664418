"""Logins and roles of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg

from tests.support.databases import Database
from token_tracking.embedded.server import Server
from token_tracking.raw.roles import Roles

RAW_TABLES = (
    "usage_events",
    "usage_event_conflicts",
    "usage_event_rejections",
    "usage_voids",
    "agent_owners",
    "agent_owner_calls",
    "tenant_readers",
    "schema_versions",
    "model_prices",
    "model_aliases",
    "price_list_rules",
    "tenant_price_lists",
)

DENIED = psycopg.errors.InsufficientPrivilege


def login(database: Database, user: str) -> psycopg.Connection[tuple]:
    return psycopg.connect(database.url, user=user, autocommit=True)


def execute(database: Database, *statements: str, user: str = "postgres") -> None:
    with closing(login(database, user)) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


@contextmanager
def managed_database(server: Server, name: str, *logins: str) -> Iterator[Database]:
    """Create a database like on managed PostgreSQL: all by a role that is not a superuser."""
    database = Database(server.url(name), server.environment(name))
    with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
        connection.execute("create role admin login createrole")
        connection.execute(f"create database {name} owner admin")
        with closing(login(database, "admin")) as own:
            Roles().apply(own)
        yield database
        connection.execute(f"drop database {name} with (force)")
        connection.execute(f"drop role {', '.join([*logins, *Roles().names.values(), 'admin'])}")
