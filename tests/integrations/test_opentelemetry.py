"""Spans of model calls, with the real SDK."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import Status, StatusCode, Tracer, format_span_id, format_trace_id

from tests.support.databases import Database
from tests.support.instrumented import KINDS, Recorded
from token_tracking import UsageTracker, make_idempotency_key, usage_context
from token_tracking.integrations.opentelemetry import TokenTrackingSpanProcessor
from token_tracking.loading.formats.otel import OTEL

NEW = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.response.model": "gpt-4o-2024-08-06",
    "gen_ai.response.id": "chatcmpl-1",
    "openai.response.service_tier": "priority",
    "gen_ai.usage.input_tokens": 100,
    "gen_ai.usage.output_tokens": 30,
    "gen_ai.usage.cache_read.input_tokens": 60,
    "gen_ai.usage.cache_write.input_tokens": 10,
    "gen_ai.usage.reasoning.output_tokens": 12,
}
OLD = {
    "gen_ai.operation.name": "chat",
    "gen_ai.system": "openai",
    "gen_ai.response.model": "gpt-4o-2024-08-06",
    "gen_ai.response.id": "chatcmpl-1",
    "gen_ai.openai.response.service_tier": "priority",
    "gen_ai.usage.prompt_tokens": 100,
    "gen_ai.usage.completion_tokens": 30,
    "gen_ai.usage.cache_read_input_tokens": 60,
    "gen_ai.usage.cache_creation_input_tokens": 10,
    "gen_ai.usage.reasoning_tokens": 12,
}
EVENT = KINDS | {
    "tenant_id": "acme",
    "idempotency_key": make_idempotency_key("openai", "chatcmpl-1"),
    "token_type": "llm",
    "operation": "query",
    "metadata": {},
    "provider": "openai",
    "model": "gpt-4o-2024-08-06",
    "service_tier": "priority",
    "cache_read_tokens": 60,
    "cache_write_tokens": 10,
    "reasoning_tokens": 12,
}
WITHOUT_ID = {name: value for name, value in NEW.items() if name != "gen_ai.response.id"}


@contextmanager
def tracing(processor: TokenTrackingSpanProcessor, **more: object) -> Iterator[Tracer]:
    provider = TracerProvider(shutdown_on_exit=False, **more)
    provider.add_span_processor(processor)
    yield provider.get_tracer("test")
    provider.shutdown()


@pytest.fixture
def tracer(tracker: UsageTracker) -> Iterator[Tracer]:
    with tracing(TokenTrackingSpanProcessor(tenant_id="acme", tracker=tracker)) as made:
        yield made


@pytest.mark.parametrize("attributes", [NEW, OLD], ids=["new names", "old names"])
def test_a_model_call_is_recorded(attributes: dict, tracer: Tracer, recorded: Recorded):
    with tracer.start_as_current_span("chat gpt-4o") as span:
        span.set_attributes(attributes)
    assert recorded.event() == EVENT


def test_only_model_calls_count(tracer: Tracer, recorded: Recorded):
    """Agents, workflows and tools repeat the sums of the calls below them."""
    sums = {"gen_ai.usage.input_tokens": 300, "gen_ai.usage.output_tokens": 90}
    for outer in ("invoke_agent", "create_agent", "invoke_workflow", "execute_tool"):
        with tracer.start_as_current_span(outer) as span:
            span.set_attributes({"gen_ai.operation.name": outer, **sums})
            for inner in ("chat", "text_completion", "generate_content", "embeddings"):
                with tracer.start_as_current_span(inner) as span_inside:
                    id_ = f"{outer}-{inner}"
                    span_inside.set_attributes(
                        NEW | {"gen_ai.operation.name": inner, "gen_ai.response.id": id_}
                    )
    with tracer.start_as_current_span("says not what it is") as span:
        span.set_attributes(sums)
    with tracer.start_as_current_span("GET /") as span:
        span.set_attributes({"http.request.method": "GET"})
    events = recorded.events()
    assert [event["tokens"] for event in events] == [130] * 16
    assert [event["token_type"] for event in events].count("embedding") == 4
    stats = recorded.tracker.stats()
    assert (stats.recorded, stats.without_usage, stats.rejected) == (16, 0, 0)


def test_a_response_id_makes_two_spans_one_event(
    tracer: Tracer, tracker: UsageTracker, recorded: Recorded
):
    for _ in range(2):
        with tracer.start_as_current_span("chat") as span:
            span.set_attributes(NEW)
    response = {
        "id": "chatcmpl-1",
        "model": "gpt-4o-2024-08-06",
        "service_tier": "priority",
        "choices": [],
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 30,
            "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
            "completion_tokens_details": {"reasoning_tokens": 12},
        },
    }
    tracker.track_response_sync(response, tenant_id="acme")
    assert recorded.event() == EVENT
    stats = tracker.stats()
    assert (stats.recorded, stats.duplicate, stats.conflict) == (1, 2, 0)


def test_a_span_without_response_id_is_the_call_that_load_reads(tracer: Tracer, recorded: Recorded):
    with tracer.start_as_current_span("chat") as span:
        span.set_attributes(WITHOUT_ID)
    place = span.get_span_context()
    exported = {
        "traceId": format_trace_id(place.trace_id),
        "spanId": format_span_id(place.span_id),
        "startTimeUnixNano": str(span.start_time),
    }
    loaded = OTEL.event_of(WITHOUT_ID | exported)
    event = recorded.event()
    assert event == EVENT | {"idempotency_key": loaded["idempotency_key"]}
    [(at,)] = recorded.database.rows("select occurred_at from token_tracking_raw.usage_events")
    assert at == datetime.fromisoformat(loaded["occurred_at"])
    assert abs(at - datetime.now(UTC)).total_seconds() < 60


def test_whose_call_it_is(tracker: UsageTracker, recorded: Recorded):
    """Attributes come before the context where the span began, that before the resource."""
    processor = TokenTrackingSpanProcessor(
        tenant_id="given", collection_id="docs", operation="chat", tracker=tracker
    )
    resource = Resource.create({"tenant.id": "of-resource", "agent_id": "of-resource"})
    with tracing(processor, resource=resource) as tracer:
        with usage_context(tenant_id="context", conversation_id="context"):
            span = tracer.start_span("chat")
        span.set_attributes(NEW | {"gen_ai.conversation.id": "c-7"})
        with usage_context(tenant_id="other"):
            span.end()
    assert recorded.event() == EVENT | {
        "tenant_id": "context",
        "agent_id": "of-resource",
        "conversation_id": "c-7",
        "collection_id": "docs",
        "operation": "chat",
    }
    assert processor._open == {}


def test_a_span_of_nobody_is_counted_and_kept(emptied: Database, recorded: Recorded):
    processor = TokenTrackingSpanProcessor(tracker=recorded.tracker)
    with tracing(processor) as tracer, tracer.start_as_current_span("chat") as span:
        span.set_attributes(NEW)
    assert recorded.events() == []
    stats = recorded.tracker.stats()
    assert (stats.without_tenant, stats.rejected) == (1, 1)
    [(payload,)] = emptied.rows("select payload from token_tracking_raw.usage_event_rejections")
    assert payload["tokens"] == 130


def test_calls_without_usage_count_unless_they_failed(tracer: Tracer, recorded: Recorded):
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o"}
    with tracer.start_as_current_span("fails") as span:
        span.set_attributes(attributes)
        span.set_status(Status(StatusCode.ERROR))
    with tracer.start_as_current_span("silent") as span:
        span.set_attributes(attributes)
    event = recorded.event()
    assert (event["tokens"], event["model"]) == (0, "gpt-4o")
    assert event["metadata"] == {"usage": "missing"}
    assert recorded.tracker.stats().without_usage == 1


def test_a_failed_call_that_tells_usage_counts(tracer: Tracer, recorded: Recorded):
    with tracer.start_as_current_span("cut") as span:
        span.set_attributes(NEW)
        span.set_status(Status(StatusCode.ERROR))
    assert recorded.event() == EVENT


def test_spans_that_are_not_sampled_are_not_seen(tracker: UsageTracker, recorded: Recorded):
    """A limit that the documents tell."""
    processor = TokenTrackingSpanProcessor(tenant_id="acme", tracker=tracker)
    with (
        tracing(processor, sampler=ALWAYS_OFF) as tracer,
        usage_context(tenant_id="acme"),
        tracer.start_as_current_span("chat") as span,
    ):
        span.set_attributes(NEW)
    assert recorded.events() == []
    assert processor._open == {}


def test_what_others_export_is_unchanged(tracker: UsageTracker, recorded: Recorded):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(TokenTrackingSpanProcessor(tracker=tracker))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with usage_context(tenant_id="acme"), tracer.start_as_current_span("chat") as span:
        span.set_attributes(NEW)
    [exported] = exporter.get_finished_spans()
    assert json.loads(exported.to_json())["attributes"] == NEW
    assert recorded.event() == EVENT
    provider.shutdown()


def test_flush_waits_until_all_is_written(
    tracker: UsageTracker, emptied: Database, recorded: Recorded
):
    processor = TokenTrackingSpanProcessor(tenant_id="acme", tracker=tracker)
    with tracing(processor) as tracer:
        with psycopg.connect(emptied.url) as other:
            other.execute("lock table token_tracking_raw.usage_events in exclusive mode")
            with tracer.start_as_current_span("chat") as span:
                span.set_attributes(NEW)
            start = time.monotonic()
            assert not processor.force_flush(50)
            assert 0.05 <= time.monotonic() - start < 2
        assert processor.force_flush()
        assert tracker.stats().recorded == 1
        processor.shutdown()
        with tracer.start_as_current_span("too late") as span:
            span.set_attributes(WITHOUT_ID)
    assert len(recorded.events()) == 1


def test_a_fault_stays_inside(
    tracer: Tracer, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, caplog
):
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("token_tracking.integrations.opentelemetry.is_model_call", broken)
    with tracer.start_as_current_span("chat") as span:
        span.set_attributes(NEW)
    assert recorded.events() == []
    assert "could not be tracked, RuntimeError" in caplog.text
    assert "a secret" not in caplog.text


def test_spans_that_never_end_do_not_fill_the_memory(
    tracker: UsageTracker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("token_tracking.integrations.opentelemetry._MOST_OPEN", 3)
    processor = TokenTrackingSpanProcessor(tracker=tracker)
    with tracing(processor) as tracer, usage_context(tenant_id="acme"):
        spans = [tracer.start_span("chat") for _ in range(5)]
        assert len(processor._open) == 3
        for span in spans:
            span.end()
    assert processor._open == {}
