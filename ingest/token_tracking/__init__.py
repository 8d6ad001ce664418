"""Exact LLM token metering: each call is one event, every total is computed from the events.

Names are imported at first use: importing this package loads no driver and starts no thread.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .client.context import usage_context
    from .client.settings import TrackerSettings
    from .default import (
        configure,
        default_tracker,
        record_agent_owner,
        record_agent_owner_sync,
        track_many,
        track_many_sync,
        track_response,
        track_response_sync,
        track_token_usage,
        track_token_usage_sync,
        void_usage,
        void_usage_sync,
    )
    from .errors import (
        InvalidUsageError,
        NotDurableError,
        SchemaError,
        SettingsError,
        TokenTrackingError,
        UsageConflictError,
        UsageNotFoundError,
    )
    from .event.keys import make_idempotency_key
    from .event.labels import (
        OPERATION_BATCH,
        OPERATION_CHAT,
        OPERATION_CLASSIFICATION,
        OPERATION_EXTRACTION,
        OPERATION_GENERATION,
        OPERATION_INTERNAL,
        OPERATION_QUERY,
        OPERATION_SUMMARIZE,
        OPERATION_VECTOR_SEARCH,
        TOKEN_TYPE_EMBEDDING,
        TOKEN_TYPE_FINE_TUNING,
        TOKEN_TYPE_LLM,
        Operation,
        TokenType,
    )
    from .event.usage_event import UsageEvent
    from .instrumentation.instrument import instrument, uninstrument
    from .responses.usage import ResponseUsage, usage_of
    from .tracker import TrackerStats, UsageTracker

__all__ = [
    "OPERATION_BATCH",
    "OPERATION_CHAT",
    "OPERATION_CLASSIFICATION",
    "OPERATION_EXTRACTION",
    "OPERATION_GENERATION",
    "OPERATION_INTERNAL",
    "OPERATION_QUERY",
    "OPERATION_SUMMARIZE",
    "OPERATION_VECTOR_SEARCH",
    "TOKEN_TYPE_EMBEDDING",
    "TOKEN_TYPE_FINE_TUNING",
    "TOKEN_TYPE_LLM",
    "InvalidUsageError",
    "NotDurableError",
    "Operation",
    "ResponseUsage",
    "SchemaError",
    "SettingsError",
    "TokenTrackingError",
    "TokenType",
    "TrackerSettings",
    "TrackerStats",
    "UsageConflictError",
    "UsageEvent",
    "UsageNotFoundError",
    "UsageTracker",
    "configure",
    "default_tracker",
    "instrument",
    "make_idempotency_key",
    "record_agent_owner",
    "record_agent_owner_sync",
    "track_many",
    "track_many_sync",
    "track_response",
    "track_response_sync",
    "track_token_usage",
    "track_token_usage_sync",
    "uninstrument",
    "usage_context",
    "usage_of",
    "void_usage",
    "void_usage_sync",
]

_MODULES: Final = {
    "client.context": ("usage_context",),
    "errors": (
        "InvalidUsageError",
        "NotDurableError",
        "SchemaError",
        "SettingsError",
        "TokenTrackingError",
        "UsageConflictError",
        "UsageNotFoundError",
    ),
    "event.usage_event": ("UsageEvent",),
    "event.keys": ("make_idempotency_key",),
    "responses.usage": ("ResponseUsage", "usage_of"),
    "client.settings": ("TrackerSettings",),
    "instrumentation.instrument": ("instrument", "uninstrument"),
    "tracker": ("TrackerStats", "UsageTracker"),
    "default": (
        "configure",
        "default_tracker",
        "record_agent_owner",
        "record_agent_owner_sync",
        "track_many",
        "track_many_sync",
        "track_response",
        "track_response_sync",
        "track_token_usage",
        "track_token_usage_sync",
        "void_usage",
        "void_usage_sync",
    ),
}
_CALLS: Final = frozenset(
    name for name in _MODULES["default"] if name.startswith(("record", "track", "void"))
)
_HOMES: Final = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    try:
        module = import_module(f".{_HOMES.get(name, 'event.labels')}", __name__)
    except ImportError:
        if name in _CALLS and sys.is_finalizing():
            return _too_late(name)
        raise
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def _too_late(name: str) -> object:
    """Return a stand-in for a destructor that calls when nothing can be imported any more."""

    def refused(*_: object, **__: object) -> bool | list[bool]:
        if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]
            sys.stderr.write(
                f"token_tracking: {name} refused: the interpreter has shut down, and it was not "
                "called before; call UsageTracker.start or default_tracker at the start\n"
            )
        return [] if name.startswith("track_many") else False

    async def refused_async(*given: object, **named: object) -> bool | list[bool]:
        return refused(*given, **named)

    return refused if name.endswith("_sync") else refused_async


def __dir__() -> list[str]:
    return __all__
