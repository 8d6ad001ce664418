"""The fixtures of all tests of instrumented clients, which run in one worker."""

import pytest

from tests.support.tracked_providers import (
    provider_server,
    recorded,
    session_server,
    tracker,
)

__all__ = ["provider_server", "recorded", "session_server", "tracker"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run them in one worker: each library takes a second to import."""
    for item in items:
        if "provider_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("instrumentation"))
