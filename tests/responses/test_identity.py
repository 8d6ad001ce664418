"""The key of a call does not depend on who tells of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from token_tracking import make_idempotency_key
from token_tracking.responses.identity import litellm_key, span_key

START = datetime(2026, 11, 2, 10, 0, 0, 123_999, tzinfo=UTC)
SPAN = ("5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174")


def test_litellms_calls_have_the_key_of_their_response():
    expected = make_idempotency_key("openai", "chatcmpl-1")
    assert litellm_key("openai", "chatcmpl-1", START) == expected
    assert litellm_key("openai", "chatcmpl-1", None) == expected


def test_ollamas_calls_are_told_apart_by_their_start():
    """As the callback has it, and as the log has it: cut to milliseconds."""
    logged = START.replace(microsecond=123_000)
    elsewhere = logged.astimezone(timezone(timedelta(hours=5, minutes=30)))
    key = litellm_key("ollama", "chatcmpl-1", START)
    assert key == litellm_key("ollama", "chatcmpl-1", logged)
    assert key == litellm_key("ollama", "chatcmpl-1", elsewhere)
    assert key != litellm_key("ollama", "chatcmpl-1", logged + timedelta(milliseconds=1))


def test_spans_have_the_key_of_their_response_or_their_own():
    assert span_key("openai", "chatcmpl-1", *SPAN) == make_idempotency_key("openai", "chatcmpl-1")
    own = make_idempotency_key("otel", *SPAN)
    assert span_key("openai", None, *SPAN) == own
    assert span_key("ollama", "chatcmpl-1", *SPAN) == own
    assert span_key("openai", None, *(name.upper() for name in SPAN)) == own
