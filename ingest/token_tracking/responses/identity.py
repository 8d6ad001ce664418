"""The key of a model call, the same wherever its response was seen."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from ..event.keys import make_idempotency_key

# Their response ids are random numbers of few digits, or begin again with the server.
_REPEAT_IDS: Final = frozenset({"ollama"})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def call_key(provider: str | None, response_id: object, *call: object) -> str:
    """Return the key that `track_response` makes of provider and response id.

    It is made of `call` instead if there is no response id, or if the provider repeats its ids.
    """
    if response_id is None or provider in _REPEAT_IDS:
        return make_idempotency_key(*call)
    return make_idempotency_key(provider, response_id)


def litellm_key(provider: str | None, call_id: str, started: datetime | None) -> str:
    """Return the key of a call that LiteLLM made; `call_id` is that of its response and logs.

    The start tells calls apart whose provider repeats its ids. It counts in whole milliseconds, to
    which LiteLLM's database client cuts it.
    """
    start = None if started is None else (started - _EPOCH) // timedelta(milliseconds=1)
    return call_key(provider, call_id, provider, call_id, start)


def span_key(provider: str | None, response_id: object, trace_id: str, span_id: str) -> str:
    """Return the key of the call that a span describes; the ids are hexadecimal."""
    return call_key(provider, response_id, "otel", trace_id.lower(), span_id.lower())
