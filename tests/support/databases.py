"""Real servers and databases for the tests: templates, and fresh copies of them."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psycopg
import pytest

from token_tracking.embedded.server import Server
from token_tracking.raw.schema import apply_schema

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")

# A PostgreSQL to use instead of the embedded one, except in tests that start servers themselves.
GIVEN_BY = "TOKEN_TRACKING_TEST_POSTGRES"

GIVEN = os.environ.get(GIVEN_BY)
# The data folder of a running server, for a test that runs another one in a process of its own.
SHARED_BY = "TOKEN_TRACKING_TEST_SERVER"
SHARED = os.environ.get(SHARED_BY)
# Its template, if the package there has the same raw schema.
TEMPLATE_BY = "TOKEN_TRACKING_TEST_TEMPLATE"
SETTINGS = frozenset({GIVEN_BY, SHARED_BY, TEMPLATE_BY})

# Nothing here survives the test run, so nothing has to reach the disk.
NOT_DURABLE = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "max_wal_size": "128MB",
}
MEMORY = Path("/dev/shm")
MOST_BYTES = 6 << 30  # of all servers of a run

TEMPLATE = os.environ.get(TEMPLATE_BY) or (
    f"template_raw_{os.getpid()}" if SHARED else "template_raw"
)


@dataclass(frozen=True)
class Database:
    """A fresh database with the raw schema, which one test has for itself."""

    url: str
    env: dict[str, str]

    def connect(self) -> psycopg.Connection[tuple]:
        """Connect in autocommit mode, as the owner of everything."""
        return psycopg.connect(self.url, autocommit=True)

    def rows(self, query: str, parameters: object = None) -> list[tuple]:
        """Return the rows of one query."""
        with closing(self.connect()) as connection:
            return connection.execute(query, parameters).fetchall()  # type: ignore[arg-type]

    def value(self, query: str, parameters: object = None) -> object:
        """Return the only value of one query."""
        [(value,)] = self.rows(query, parameters)
        return value


def server_folder() -> Path:
    """Make a short-named folder for servers, in memory where there is room: nothing is to last.

    A new database is 300 files, which took a disk that was busy a quarter of a second.
    """
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MOST_BYTES
    folder = Path(tempfile.mkdtemp(prefix="tt-", dir=MEMORY if has_room else None))
    folder.chmod(0o755)  # root's server runs as another user
    return folder


def started_server(bin_dir: Path | None, settings: dict[str, str]) -> Iterator[Server]:
    """Run a server in a temporary folder, and remove both in the end."""
    folder = server_folder()
    server = (
        Server(folder / "data", settings=settings)
        if bin_dir is None
        else Server(folder / "data", bin_dir, settings)
    )
    try:
        server.start()
        make_template(server)
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def shared_server(data_dir: Path) -> Iterator[Server]:
    """Use a server that runs, with its template or one of this process's package."""
    server = Server(data_dir)
    if TEMPLATE_BY in os.environ:
        yield server
        return
    make_template(server)
    yield server
    with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
        connection.execute(f"drop database {TEMPLATE} with (force)")


def make_template(server: Server) -> None:
    """Make the database that tests copy, with the raw schema."""
    with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
        connection.execute(f"create database {TEMPLATE}")
    with closing(psycopg.connect(server.url(TEMPLATE))) as connection:
        apply_schema(connection)


def debian_15() -> Path:
    """Return the folder of its programs; if it is missing, skip the test, or fail it in CI."""
    if not DEBIAN_15.is_dir():
        left_out("PostgreSQL 15 is not installed: apt-get install postgresql-15")
    return DEBIAN_15


def left_out(reason: str) -> NoReturn:
    """Skip the test because something is not installed, or fail it in CI."""
    if os.environ.get("GITHUB_ACTIONS"):
        pytest.fail(reason)
    pytest.skip(reason)


def copy_database(connection: psycopg.Connection, name: str, template: str) -> None:
    """Copy a database that nobody is connected to, by its files: its WAL would cost twice that."""
    connection.execute(f"create database {name} template {template} strategy file_copy")


_numbers = itertools.count(1)


def fresh_database(server: Server, template: str = TEMPLATE) -> Iterator[Database]:
    """Copy the template database, and drop the copy in the end."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
        copy_database(connection, name, template)
        yield Database(server.url(name), server.environment(name))
        connection.execute(f"drop database {name} with (force)")


_emptied: dict[Path, Database] = {}

_EMPTY = (
    "truncate token_tracking_raw.usage_events, token_tracking_raw.usage_event_conflicts,"
    " token_tracking_raw.usage_event_rejections, token_tracking_raw.usage_voids,"
    " token_tracking_raw.agent_owners, token_tracking_raw.agent_owner_calls,"
    " token_tracking_raw.model_prices, token_tracking_raw.model_aliases,"
    " token_tracking_raw.price_list_rules, token_tracking_raw.tenant_price_lists"
)


def emptied_database(server: Server) -> Database:
    """Return the worker's database for tests that only write raw rows: emptied, not recreated."""
    if server.data_dir not in _emptied:
        name = f"test_{os.getpid()}_emptied"
        with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
            copy_database(connection, name, TEMPLATE)
        _emptied[server.data_dir] = Database(server.url(name), server.environment(name))
    database = _emptied[server.data_dir]
    with closing(database.connect()) as connection:
        connection.execute(_EMPTY)
    return database
