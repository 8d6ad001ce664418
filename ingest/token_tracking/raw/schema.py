"""Creates the raw schema `token_tracking_raw`, or upgrades an older one to this version."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, LiteralString, cast

import psycopg
from psycopg import sql

from ..errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Sequence

OLDEST_POSTGRESQL = 15
_FOLDER = resources.files("token_tracking.raw")
_STAMPED = """
    select tables.relname
    from pg_attribute as columns
    inner join pg_class as tables on columns.attrelid = tables.oid
    where
        tables.relnamespace = 'token_tracking_raw'::regnamespace
        and tables.relkind = 'r'
        and columns.attname = 'ingest_xid'
    order by tables.relname
"""
# Visible rows that this cluster wrote have transaction numbers below the snapshot's xmax.
_STAMP = """
    update {} set ingest_xid = pg_current_xact_id()::text::bigint
    where ingest_xid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint
"""
# Concurrent applies wait for a lock on a table that only they may lock. Any login could take an
# advisory lock, and so block them.
_LOCK = "lock table token_tracking_raw.schema_versions in share row exclusive mode"
_MADE_MEANWHILE = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.DuplicateSchema,
    psycopg.errors.DuplicateTable,
    psycopg.errors.DuplicateObject,
)
# Seconds that a change waits for a table's readers, while all others queue behind it.
_PATIENCE = 5
_HOLDERS = """
    select
        locks.relation::regclass::text,
        string_agg(
            distinct format(
                'process %s (user %s, application %s)',
                activity.pid, activity.usename, coalesce(nullif(activity.application_name, ''), '?')
            ),
            ', '
        )
    from pg_locks as locks
    inner join pg_class as tables on locks.relation = tables.oid
    inner join pg_stat_activity as activity on locks.pid = activity.pid
    where
        tables.relnamespace = to_regnamespace('token_tracking_raw')
        and locks.database = (select oid from pg_database where datname = current_database())
        and locks.granted
        and locks.pid <> pg_backend_pid()
    group by locks.relation
    order by 1
"""
_ATTEMPTS = 10
_THERE = """
    select
        to_regnamespace('token_tracking_raw') is not null,
        to_regclass('token_tracking_raw.schema_versions') is not null
"""
# New objects belong to the schema's owner, whichever of its members applies (in PostgreSQL 15, each
# member may SET ROLE to it). Returns the role to switch back to.
_BECOME_OWNER = """
    select current_setting('role'), set_config('role', owner.rolname, true)
    from pg_namespace
    inner join pg_roles as owner on pg_namespace.nspowner = owner.oid
    where
        pg_namespace.nspname = 'token_tracking_raw'
        and owner.rolname <> current_user
        and pg_has_role(current_user, owner.oid, case
            when current_setting('server_version_num')::integer < 160000 then 'member' else 'set'
        end)
"""


@dataclass(frozen=True)
class SchemaVersion:
    """One version of the schema: its number, from 1 without gaps, and the SQL that applies it."""

    number: int
    name: str
    sql: str


@dataclass(frozen=True)
class SchemaChange:
    """The version numbers before and after an apply; 0 means that there was no schema.

    `stamped` counts rows, restored from another cluster's dump, whose transaction numbers were in
    this cluster's future; they were set to the apply's own transaction number.
    """

    before: int
    after: int
    stamped: int = 0


def packaged_versions() -> list[SchemaVersion]:
    """Return the versions that this package knows, oldest first."""
    folder = _FOLDER / "versions"
    found = {
        file: re.fullmatch(r"(\d{3})_(\w+)\.sql", file.name)
        for file in folder.iterdir()
        if file.is_file()
    }
    versions = [
        SchemaVersion(int(match[1]), match[2], file.read_text("utf-8"))
        for file, match in found.items()
        if match
    ]
    return sorted(versions, key=lambda version: version.number)


def packaged_procedures() -> list[str]:
    """Return the SQL of this package's procedures, one item per file, in the order to run them."""
    files = [file for file in (_FOLDER / "procedures").iterdir() if file.name.endswith(".sql")]
    return [file.read_text("utf-8") for file in sorted(files, key=lambda file: file.name)]


def apply_schema(
    connection: psycopg.Connection[tuple[object, ...]],
    versions: Sequence[SchemaVersion] | None = None,
) -> SchemaChange:
    """Upgrade the raw schema to the newest of `versions` (default: the package's own).

    Everything happens in one transaction under a lock: concurrent calls wait for each other, and a
    failure changes nothing. Applying the same version again only replaces the procedures.

    Raises:
        SchemaError: the server is older than PostgreSQL 15, the database is not in UTF8, its schema
            is newer than `versions`, or another session holds a lock on a table that has to change;
            the message names its process.

    Example:
        >>> with psycopg.connect() as connection:  # doctest: +SKIP
        ...     apply_schema(connection)
        SchemaChange(before=0, after=1)

    """
    known = packaged_versions() if versions is None else list(versions)
    if connection.info.server_version < OLDEST_POSTGRESQL * 10000:
        message = (
            f"PostgreSQL {OLDEST_POSTGRESQL} or newer is needed, "
            f"this server is {connection.info.server_version // 10000}"
        )
        raise SchemaError(message)
    if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
        message = f"a database in UTF8 is needed, this one is in {encoding}"
        raise SchemaError(message)
    try:
        for _ in range(_ATTEMPTS - 1):
            with suppress(psycopg.errors.DeadlockDetected):
                return _applied(connection, known)
            # Services that write lock the tables in another order.
        return _applied(connection, known)
    except psycopg.errors.LockNotAvailable as error:
        held = [f"{table} by {holders}" for table, holders in connection.execute(_HOLDERS)]
        message = (
            f"a table has to change, and others used it for more than {_PATIENCE} s: "
            f"{'; '.join(held) or 'they have ended by now'}. Apply again when these "
            "transactions have ended, or end them"
        )
        raise SchemaError(message) from error


def _applied(
    connection: psycopg.Connection[tuple[object, ...]], known: Sequence[SchemaVersion]
) -> SchemaChange:
    newest = known[-1].number
    with connection.transaction():
        connection.execute("set local standard_conforming_strings = on")
        # Do not call functions or operators that other users created in their schemas.
        connection.execute("set local search_path = pg_catalog, pg_temp")
        own_role = _take_turn(connection)
        before = _current_version(connection)
        if before > newest:
            message = (
                f"the database has version {before} of the schema, this package knows {newest}: "
                "upgrade the package"
            )
            raise SchemaError(message)
        connection.execute("select set_config('lock_timeout', %s, true)", (f"{_PATIENCE}s",))
        for version in known:
            if version.number > before:
                connection.execute(trusted(version.sql))
                connection.execute(
                    "insert into token_tracking_raw.schema_versions (version, name) "
                    "values (%s, %s)",
                    (version.number, version.name),
                )
        for procedures in packaged_procedures():
            connection.execute(trusted(procedures))
        # Rows that the previous procedures wrote until now must be older than this time.
        connection.execute(
            "update token_tracking_raw.schema_versions set applied_at = clock_timestamp() "
            "where version > %s",
            (before,),
        )
        stamped = sum(
            connection.execute(
                sql.SQL(_STAMP).format(sql.Identifier("token_tracking_raw", str(table)))
            ).rowcount
            for (table,) in connection.execute(_STAMPED).fetchall()
        )
        connection.execute("set local lock_timeout to default")
        if own_role is not None:
            connection.execute("select set_config('role', %s, true)", own_role[:1])
    return SchemaChange(before, newest, stamped)


def _take_turn(
    connection: psycopg.Connection[tuple[object, ...]],
) -> tuple[object, ...] | None:
    """Create the schema and its table of versions if they are missing, and lock that table.

    Returns the role to switch back to, if the schema has another owner.
    """
    for _ in range(_ATTEMPTS):
        try:
            with connection.transaction():
                own_role = connection.execute(_BECOME_OWNER).fetchone()
                # "if not exists" needs the CREATE privilege even if the schema exists.
                [(has_schema, has_table)] = connection.execute(_THERE).fetchall()
                if not has_schema:
                    connection.execute("create schema token_tracking_raw")
                if not has_table:
                    connection.execute(
                        "create table token_tracking_raw.schema_versions ("
                        "version integer primary key, name text not null, "
                        "applied_at timestamptz not null default now())"
                    )
                connection.execute(_LOCK)
                return own_role
        except _MADE_MEANWHILE:  # another apply has created it and committed
            continue
    message = "the schema token_tracking_raw is created and dropped repeatedly: apply again"
    raise SchemaError(message)


def _current_version(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    row = connection.execute(
        "select coalesce(max(version), 0) from token_tracking_raw.schema_versions"
    ).fetchone()
    return cast("int", row[0]) if row else 0


def trusted(sql: str) -> LiteralString:
    """Return SQL from a file of this package as a `LiteralString`: it contains no values."""
    return cast("LiteralString", sql)
