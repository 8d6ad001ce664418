"""`track_response`: one call for a response that the service has in its hands."""

from __future__ import annotations

import asyncio
import inspect
import logging
from datetime import UTC, datetime

import pytest

import token_tracking
from tests.support.instrumented import KINDS, Recorded
from tests.support.provider_server import GEMINI_USAGE, OPENAI_USAGE
from token_tracking import (
    InvalidUsageError,
    UsageTracker,
    make_idempotency_key,
    track_response,
    track_response_sync,
    usage_context,
)

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o-2024-08-06",
    "choices": [{"message": {"content": "a secret"}}],
    "service_tier": "flex",
    "usage": OPENAI_USAGE,
}
EVENT = KINDS | {
    "tenant_id": "acme",
    "idempotency_key": make_idempotency_key("openai", "chatcmpl-1"),
    "token_type": "llm",
    "operation": "query",
    "metadata": {},
    "provider": "openai",
    "model": "gpt-4o-2024-08-06",
    "service_tier": "flex",
    "cache_read_tokens": 60,
    "cache_write_tokens": 10,
    "reasoning_tokens": 12,
}
REJECTIONS = "select payload, reason from token_tracking_raw.usage_event_rejections"


def test_a_response_is_one_event_however_often_it_is_tracked(
    tracker: UsageTracker, recorded: Recorded
):
    assert asyncio.run(tracker.track_response(CHAT, tenant_id="acme"))
    assert tracker.track_response_sync(CHAT, tenant_id="acme")
    assert recorded.event() == EVENT
    stats = tracker.stats()
    assert (stats.recorded, stats.duplicate) == (1, 1)


def test_arguments_take_precedence_over_response_and_context(
    tracker: UsageTracker, recorded: Recorded
):
    with usage_context(tenant_id="other", agent_id="a", operation="chat"):
        assert tracker.track_response_sync(CHAT)
        assert tracker.track_response_sync(
            CHAT,
            tenant_id="acme",
            conversation_id="c",
            collection_id="d",
            operation="extraction",
            metadata={"step": 3},
            occurred_at=datetime(2026, 1, 2, tzinfo=UTC),
            idempotency_key="mine",
            provider="vllm",
            model="llama",
            token_type="fine_tuning",
        )
    named, in_context = recorded.events()
    assert in_context == EVENT | {"tenant_id": "other", "agent_id": "a", "operation": "chat"}
    assert named == EVENT | {
        "agent_id": "a",
        "conversation_id": "c",
        "collection_id": "d",
        "operation": "extraction",
        "metadata": {"step": 3},
        "idempotency_key": "mine",
        "provider": "vllm",
        "model": "llama",
        "token_type": "fine_tuning",
    }
    times = recorded.database.rows(
        "select occurred_at from token_tracking_raw.usage_events where idempotency_key = 'mine'"
    )
    assert times == [(datetime(2026, 1, 2, tzinfo=UTC),)]


def test_a_response_without_id_is_an_event_of_its_own(tracker: UsageTracker, recorded: Recorded):
    response = {"modelVersion": "gemini-2.5-flash", "usageMetadata": GEMINI_USAGE}
    assert tracker.track_response_sync(response, tenant_id="acme")
    assert tracker.track_response_sync(response, tenant_id="acme")
    first, second = recorded.events()
    assert first["idempotency_key"] != second["idempotency_key"]


def test_a_contradiction_is_noted_in_the_metadata(tracker: UsageTracker, recorded: Recorded):
    wrong = CHAT | {"usage": OPENAI_USAGE | {"total_tokens": 999}}
    assert tracker.track_response_sync(wrong, tenant_id="acme", metadata={"step": 1})
    event = recorded.event()
    assert event["tokens"] == 999
    assert "input_tokens" not in event
    assert event["metadata"]["step"] == 1
    assert "are not the total 999" in event["metadata"]["usage_note"]


@pytest.mark.parametrize("response", [None, {"choices": ["a secret"]}, object()])
def test_an_unknown_response_is_refused_without_its_content(
    response: object,
    tracker: UsageTracker,
    recorded: Recorded,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.WARNING, "token_tracking")
    assert not tracker.track_response_sync(response, tenant_id="acme", agent_id="a")
    assert recorded.events() == []
    assert tracker.stats().rejected == 1
    [(payload, reason)] = recorded.database.rows(REJECTIONS)
    assert (payload["tenant_id"], payload["agent_id"]) == ("acme", "a")
    assert "secret" not in str(payload) + reason + caplog.text
    assert "known forms are" in caplog.text


def test_a_tracker_may_raise(emptied, recorded: Recorded):
    with (
        UsageTracker(dsn=emptied.url, on_error="raise") as tracker,
        pytest.raises(InvalidUsageError, match="known forms are"),
    ):
        tracker.track_response_sync({}, tenant_id="acme")


def test_the_functions_are_those_of_the_default_tracker():
    for function, method in (
        (track_response, UsageTracker.track_response),
        (track_response_sync, UsageTracker.track_response_sync),
    ):
        parameters = list(inspect.signature(method).parameters.values())[1:]
        assert list(inspect.signature(function).parameters.values()) == parameters
    assert {"track_response", "track_response_sync"} <= set(token_tracking.__all__)
