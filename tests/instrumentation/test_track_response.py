"""`track_response`: one call for a response that the service has in its hands."""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import suppress
from datetime import UTC, datetime

import cohere
import httpx
import ollama
import pytest

import token_tracking
from tests.support.instrumented import KINDS, Recorded
from tests.support.provider_server import GEMINI_USAGE, OPENAI_USAGE, ProviderServer
from token_tracking import (
    InvalidUsageError,
    UsageNotFoundError,
    UsageTracker,
    make_idempotency_key,
    track_response,
    track_response_sync,
    usage_context,
    usage_of,
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
# Of libraries that tell no kinds.
COUNTS = {
    "tenant_id": "acme",
    "token_type": "llm",
    "operation": "query",
    "metadata": {},
    "tokens": 130,
    "input_tokens": 100,
    "output_tokens": 30,
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


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_responses_of_coheres_library(
    provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded, is_streamed: bool
):
    messages = [{"role": "user", "content": "u1"}]
    with cohere.ClientV2(api_key="-", base_url=provider_server.url) as client:
        if is_streamed:
            *_, response = client.chat_stream(model="command-a", messages=messages)
        else:
            response = client.chat(model="command-a", messages=messages)
    # Its responses do not name the model.
    assert tracker.track_response_sync(response, tenant_id="acme", model="command-a")
    assert tracker.track_response_sync(response, tenant_id="acme", model="command-a")
    assert recorded.event() == COUNTS | {
        "idempotency_key": make_idempotency_key("cohere", "cohere-u1"),
        "provider": "cohere",
        "model": "command-a",
    }  # of what is billed


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_responses_of_ollamas_library(
    provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded, is_streamed: bool
):
    messages = [{"role": "user", "content": "u1"}]
    with ollama.Client(host=provider_server.url) as client:
        response = client.chat(model="llama3.3", messages=messages, stream=is_streamed)
        if is_streamed:
            *_, response = response
    assert tracker.track_response_sync(response, tenant_id="acme")
    event = recorded.event()
    assert event.pop("idempotency_key")  # of its own: the responses have no id
    assert event == COUNTS | {"provider": "ollama", "model": "llama3.3"}


def test_a_stream_that_is_cut_tells_no_usage(provider_server: ProviderServer):
    """Of libraries whose clients are not instrumented: what was read last has none."""
    messages = [{"role": "user", "content": "u1"}]
    last: list[object] = []
    with (
        cohere.ClientV2(api_key="-", base_url=provider_server.url) as of_cohere,
        ollama.Client(host=provider_server.url) as of_ollama,
    ):
        for stream in (
            of_cohere.chat_stream(model="cut", messages=messages),
            of_ollama.chat(model="cut", messages=messages, stream=True),
        ):
            with suppress(httpx.RemoteProtocolError):
                for chunk in stream:
                    last[:] = [chunk]
            with pytest.raises(UsageNotFoundError):
                usage_of(last.pop())
