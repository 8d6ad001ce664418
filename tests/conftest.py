"""Real servers and databases for the tests: one server per worker, a fresh database per test."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.clock import Clock
from tests.support.databases import (
    GIVEN,
    NOT_DURABLE,
    SETTINGS,
    SHARED,
    Database,
    debian_15,
    emptied_database,
    fresh_database,
    shared_server,
    started_server,
)
from token_tracking.client.complaints import BURST
from token_tracking.client.logs import speaker
from token_tracking.embedded.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_configure(config: pytest.Config) -> None:
    """Isolate the tests from the user's settings and files."""
    for name in list(os.environ):
        if name.startswith(("PG", "TOKEN_TRACKING_", "DBT_")) and name not in SETTINGS:
            del os.environ[name]
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import downloads prices
    # A shell's background job ignores Ctrl-C, and so would every process that a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests that share a module's fixture in one worker: most share a warehouse, built once."""
    # The longest ones first: at the end, the other workers would wait for them.
    items.sort(key=lambda item: item.path.stem != "test_histories")
    for item in items:
        fixtures = getattr(item, "_fixtureinfo", None)
        known = fixtures.name2fixturedefs.values() if fixtures else ()
        if any(one.scope == "module" for fixture in known for one in fixture):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report how many schedules the fault suite ran."""
    totals: dict[str, int] = {}
    for report in terminalreporter.getreports("passed"):
        for name, number in getattr(report, "user_properties", ()):
            if report.when == "call" and isinstance(number, int):
                totals[name] = totals.get(name, 0) + number
    if totals:
        terminalreporter.write_line(", ".join(f"{n:,} {name}" for name, n in totals.items()))


@pytest.fixture(autouse=True)
def private_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test its own state folder for spools and its own log, with all its room."""
    monkeypatch.setenv("TOKEN_TRACKING_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setattr("token_tracking.client.complaints.complaints._room", BURST)
    yield
    speaker.finish()  # a line that found no thread would come with the next test's first one


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The embedded server, or the one whose programs TOKEN_TRACKING_TEST_POSTGRES names."""
    if SHARED is not None:
        yield from shared_server(Path(SHARED))
    elif GIVEN is None:
        yield from started_server(None, NOT_DURABLE)
    else:
        yield from started_server(Path(GIVEN), {**NOT_DURABLE, "shared_preload_libraries": ""})


@pytest.fixture(scope="session")
def server_15() -> Iterator[Server]:
    """The server of Debian's postgresql-15 package."""
    yield from started_server(debian_15(), {**NOT_DURABLE, "shared_preload_libraries": ""})


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """A fresh database on the embedded server."""
    yield from fresh_database(server)


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


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Make a short-named folder that the account of a root's server can enter, unlike tmp_path."""
    folder = Path(tempfile.mkdtemp(prefix="tt-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
