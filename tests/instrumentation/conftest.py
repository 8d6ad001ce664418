"""The server of all tests of instrumented clients, and a tracker on an empty database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.databases import Database
from tests.support.instrumented import Recorded
from tests.support.provider_server import ProviderServer, provider_server
from token_tracking import UsageTracker


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run them in one worker: each library takes a second to import."""
    for item in items:
        if "provider_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("instrumentation"))


@pytest.fixture(scope="session", name="session_server")
def _session_server() -> Iterator[ProviderServer]:
    yield from provider_server()


@pytest.fixture(name="provider_server")
def _provider_server(session_server: ProviderServer) -> ProviderServer:
    session_server.go_on.clear()
    session_server.requests.clear()
    session_server.attempts.clear()
    return session_server


@pytest.fixture
def tracker(emptied: Database) -> Iterator[UsageTracker]:
    with UsageTracker(dsn=emptied.url) as started:
        yield started


@pytest.fixture
def recorded(emptied: Database, tracker: UsageTracker) -> Recorded:
    return Recorded(emptied, tracker)
