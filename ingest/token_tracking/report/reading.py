"""The transaction in which a report is read: all its figures are of the same snapshot."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, LiteralString, cast

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from ..client.connection import Connection
from ..marts.recount import recounted_events

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from typing import Self, TypeVar

    T = TypeVar("T")

# In milliseconds: the proof reads all raw events of the month.
_STATEMENT_TIMEOUT = "600000"
_RECOUNT = "{recounted_events}"
_READABLE: LiteralString = """
    select array[pg_namespace.nspname, pg_class.relname]
    from pg_class
    inner join pg_namespace on pg_class.relnamespace = pg_namespace.oid
    where
        pg_namespace.nspname in ('token_tracking_raw', %(schema)s)
        and pg_class.relkind = 'r'
        and has_schema_privilege(pg_namespace.oid, 'usage')
        and has_table_privilege(pg_class.oid, 'select')
    order by pg_class.oid
"""


@dataclass(frozen=True)
class Reading:
    """A repeatable-read, read-only transaction whose search path is the marts' schema."""

    database: Connection

    @classmethod
    @contextmanager
    def of(cls, schema: str) -> Generator[Self]:
        """Read the marts of a schema in the database of libpq's variables, as dbt does."""
        with Connection.open("") as database:
            database.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            database.read_only = True
            with database.transaction():
                names = [name for (name,) in database.execute(_READABLE, {"schema": schema})]
            with database.transaction():
                database.execute("set local lock_timeout = '60s'")
                # LOCK takes no snapshot. To a snapshot older than a command that rewrites a table,
                # that table would look empty.
                for name in names:
                    database.execute(
                        sql.SQL("lock table {} in access share mode").format(
                            sql.Identifier(*cast("list[str]", name))
                        )
                    )
                database.execute(
                    "select set_config('search_path', quote_ident(%s) || ', pg_temp', true),"
                    " set_config('statement_timeout', %s, true)",
                    (schema, _STATEMENT_TIMEOUT),
                )
                yield cls(database)

    def rows(
        self,
        query: str,
        kind: type[T],
        values: Mapping[str, object] | None = None,
        *,
        dimension: str | None = None,
    ) -> list[T]:
        """Return the rows of a query, named after its file in `queries`, as objects of `kind`."""
        file = resources.files("token_tracking") / "report" / "queries" / f"{query}.sql"
        text = file.read_text("utf-8")
        if _RECOUNT in text:
            events = recounted_events(snapshot="%(snapshot)s::pg_snapshot", zone="%(zone)s")
            text = text.replace(_RECOUNT, events)
        statement = sql.SQL(cast("LiteralString", text))
        composed = (
            statement
            if dimension is None
            else statement.format(dimension=sql.Identifier(dimension))
        )
        with self.database.cursor(row_factory=class_row(kind)) as cursor:
            return cursor.execute(composed, values).fetchall()

    def rows_if_allowed(
        self, query: str, kind: type[T], values: Mapping[str, object] | None = None
    ) -> list[T] | None:
        """Return the same, or None if the role lacks privileges for the query."""
        try:
            with (
                self.database.transaction()
            ):  # a savepoint: the report continues without these rows
                return self.rows(query, kind, values)
        except psycopg.errors.InsufficientPrivilege:
            return None
