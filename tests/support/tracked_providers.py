"""Fixtures: a server in the form of each provider, and a tracker on an empty database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.databases import Database
from tests.support.instrumented import Recorded
from tests.support.provider_server import ProviderServer
from tests.support.provider_server import provider_server as started_server
from token_tracking import UsageTracker


@pytest.fixture(scope="session")
def session_server() -> Iterator[ProviderServer]:
    yield from started_server()


@pytest.fixture
def provider_server(session_server: ProviderServer) -> ProviderServer:
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
