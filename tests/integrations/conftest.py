"""The fixtures of all tests of adapters."""

from tests.support.tracked_providers import (
    provider_server,
    recorded,
    session_server,
    tracker,
)

__all__ = ["provider_server", "recorded", "session_server", "tracker"]
