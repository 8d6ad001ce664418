"""Real servers and databases for the tests: one server a worker, one fresh database a test."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import psycopg
import pytest

from token_tracking.complaints import BURST
from token_tracking.raw.schema import apply_schema
from token_tracking.server import Server

from .faults.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Iterator

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
# Another PostgreSQL than the embedded one for all tests but those that start servers themselves.
GIVEN_BY = "TOKEN_TRACKING_TEST_POSTGRES"
GIVEN = os.environ.get(GIVEN_BY)
# Nothing here survives the test run, so nothing has to reach the disk.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "on"}
TEMPLATE = "template_raw"


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


def pytest_configure(config: pytest.Config) -> None:
    """Keep the tests apart from the settings and files of whoever runs them."""
    for name in list(os.environ):
        if name.startswith(("PG", "TOKEN_TRACKING_", "DBT_")) and name != GIVEN_BY:
            del os.environ[name]
    # In a shell's background Ctrl-C is ignored, and so it would be by whatever a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share a module's fixture in one worker: most are a warehouse, built once."""
    for item in items:
        fixtures = getattr(item, "_fixtureinfo", None)
        known = fixtures.name2fixturedefs.values() if fixtures else ()
        if any(one.scope == "module" for fixture in known for one in fixture):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much the fault suite went through."""
    totals: dict[str, int] = {}
    for report in terminalreporter.getreports("passed"):
        for name, number in getattr(report, "user_properties", ()):
            if report.when == "call" and isinstance(number, int):
                totals[name] = totals.get(name, 0) + number
    if totals:
        terminalreporter.write_line(", ".join(f"{n:,} {name}" for name, n in totals.items()))


@pytest.fixture(autouse=True)
def private_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a state folder of its own, for spools, and a log that still has room."""
    monkeypatch.setenv("TOKEN_TRACKING_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setattr("token_tracking.complaints.complaints._room", BURST)


def started_server(bin_dir: Path | None, settings: dict[str, str]) -> Iterator[Server]:
    """Run a server in a short-named temporary folder, and remove both in the end."""
    folder = Path(tempfile.mkdtemp(prefix="tt-"))
    folder.chmod(0o755)  # a root's server runs as somebody else
    server = (
        Server(folder / "data", settings=settings)
        if bin_dir is None
        else Server(folder / "data", bin_dir, settings)
    )
    try:
        server.start()
        with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
            connection.execute(f"create database {TEMPLATE}")
        with closing(psycopg.connect(server.url(TEMPLATE))) as connection:
            apply_schema(connection)
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The embedded server, or the one whose programs TOKEN_TRACKING_TEST_POSTGRES names."""
    if GIVEN is None:
        yield from started_server(None, NOT_DURABLE)
    else:
        yield from started_server(Path(GIVEN), {**NOT_DURABLE, "shared_preload_libraries": ""})


@pytest.fixture(scope="session")
def server_15() -> Iterator[Server]:
    """The server of Debian's package postgresql-15."""
    yield from started_server(debian_15(), {**NOT_DURABLE, "shared_preload_libraries": ""})


def debian_15() -> Path:
    """Return the folder of its programs; without it a test is skipped, in the workflow it fails."""
    if not DEBIAN_15.is_dir():
        left_out("PostgreSQL 15 is not installed: apt-get install postgresql-15")
    return DEBIAN_15


def left_out(reason: str) -> NoReturn:
    """Skip the test for what is not installed; in the workflow it fails."""
    if os.environ.get("GITHUB_ACTIONS"):
        pytest.fail(reason)
    pytest.skip(reason)


_numbers = itertools.count(1)


def fresh_database(server: Server) -> Iterator[Database]:
    """Copy the template database, and drop the copy in the end."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
        connection.execute(f"create database {name} template {TEMPLATE}")
        yield Database(server.url(name), server.environment(name))
        connection.execute(f"drop database {name} with (force)")


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """A fresh database on the embedded server."""
    yield from fresh_database(server)


_emptied: dict[Path, Database] = {}
_EMPTY = (
    "truncate token_tracking_raw.usage_events, token_tracking_raw.usage_event_conflicts,"
    " token_tracking_raw.usage_event_rejections, token_tracking_raw.usage_voids,"
    " token_tracking_raw.agent_owners, token_tracking_raw.agent_owner_calls"
)


def emptied_database(server: Server) -> Database:
    """Return the worker's database for tests that only write events: emptied, not made anew."""
    if server.data_dir not in _emptied:
        name = f"test_{os.getpid()}_emptied"
        with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
            connection.execute(f"create database {name} template {TEMPLATE}")
        _emptied[server.data_dir] = Database(server.url(name), server.environment(name))
    database = _emptied[server.data_dir]
    with closing(database.connect()) as connection:
        connection.execute(_EMPTY)
    return database


@pytest.fixture
def emptied(server: Server) -> Database:
    """An empty database on the embedded server that earlier tests have used."""
    return emptied_database(server)


@pytest.fixture(params=["embedded 18", "Debian 15"])
def each_emptied(request: pytest.FixtureRequest) -> Database:
    """The same on the embedded server, then on PostgreSQL 15."""
    fixture = "server" if request.param == "embedded 18" else "server_15"
    return emptied_database(request.getfixturevalue(fixture))


@pytest.fixture(params=["embedded 18", "Debian 15"])
def each_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A fresh database on the embedded server, then one on PostgreSQL 15."""
    fixture = "server" if request.param == "embedded 18" else "server_15"
    yield from fresh_database(request.getfixturevalue(fixture))


@pytest.fixture(scope="module")
def clock() -> Iterator[Clock]:
    """The clock of a server that is started with its `programs`; it can be set."""
    folder = Path(tempfile.mkdtemp(prefix="tt-"))
    yield Clock(folder)
    shutil.rmtree(folder)
