"""Loading what other programs export: usage becomes events, once; all else is left out, counted."""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.json.file.trace_exporter import FileSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from tests.support.commands import run
from tests.support.loading import COUNT, load, plan
from token_tracking import UsageTracker, make_idempotency_key
from token_tracking.errors import LoadError
from token_tracking.loading.formats.export import LONGEST_LINE, at
from token_tracking.loading.formats.known import export_of
from token_tracking.loading.load import Load
from token_tracking.loading.source import LONGEST_LINE as LONGEST_EVENT
from token_tracking.loading.source import Source
from token_tracking.loading.undo import Undo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.support.databases import Database
    from token_tracking.loading.plan import Plan

EVENTS = """
    select jsonb_strip_nulls(
        to_jsonb(usage_events) - array['recorded_at', 'ingest_xid', 'token_type', 'operation']
    )
    from token_tracking_raw.usage_events
    order by occurred_at, tokens
"""
REJECTIONS = "select payload, reason from token_tracking_raw.usage_event_rejections order by 2"
DAY = "2026-11-02T10:00:00+00:00"

Write = "Callable[..., Path]"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: Iterable[object], name: str = "export.jsonl") -> Path:
        file = tmp_path / name
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return file

    return write


def exported(name: str, columns: str = "", constants: str = "", zone: str = "UTC") -> Plan:
    return plan(columns, constants, zone, export=export_of(name))


def counts(done: Load) -> tuple[int, int, int, int]:
    file = done.files[0]
    return file.recorded, file.known, file.conflicts, file.refused


def events(database: Database) -> list[dict[str, object]]:
    return [event for (event,) in database.rows(EVENTS)]


# LiteLLM

SPEND = {
    "request_id": "chatcmpl-1",
    "call_type": "acompletion",
    "api_key": "88dc28",
    "spend": 0.0021,
    "total_tokens": 130,
    "prompt_tokens": 100,
    "completion_tokens": 30,
    "startTime": "2026-11-02T10:00:00.123Z",
    "endTime": "2026-11-02T10:00:02.000Z",
    "model": "gpt-4o-2024-08-06",
    "custom_llm_provider": "openai",
    "user": "default_user_id",
    "end_user": "",
    "team_id": "acme",
    "session_id": "s-1",
    "cache_hit": "False",
    "status": "success",
    "messages": {"content": "what people wrote"},
    "metadata": {
        "user_api_key_team_id": "acme",
        "usage_object": {
            "prompt_tokens": 100,
            "completion_tokens": 30,
            "total_tokens": 130,
            "prompt_tokens_details": {"cached_tokens": 60, "cache_creation_tokens": 10},
            "completion_tokens_details": {"reasoning_tokens": 20},
            "cache_read_input_tokens": 60,
            "cache_creation_input_tokens": 10,
        },
    },
}
SPENT = {
    "tenant_id": "acme",
    "idempotency_key": make_idempotency_key("openai", "chatcmpl-1"),
    "tokens": 130,
    "input_tokens": 100,
    "output_tokens": 30,
    "cache_read_tokens": 60,
    "cache_write_tokens": 10,
    "reasoning_tokens": 20,
    "model": "gpt-4o-2024-08-06",
    "provider": "openai",
    "conversation_id": "s-1",
    "metadata": {},
    "occurred_at": "2026-11-02T10:00:00.123+00:00",
}


def test_litellm_spend_logs(database, write):
    rows = [
        SPEND,
        # The proxy marks what it served from a cache at least in one of the two.
        {**SPEND, "request_id": "chatcmpl-1_cache_hit1730541600.1", "cache_hit": "None"},
        {**SPEND, "request_id": "c-2", "cache_hit": "true"},
        {
            **SPEND,
            "request_id": "c-3",
            "status": "failure",
            "total_tokens": 0,
            "metadata": {},
            "prompt_tokens": 0,
            "completion_tokens": 0,
        },
    ]
    file = write(rows)
    done = load(database, file, exported("litellm"))
    assert counts(done) == (1, 0, 0, 0)
    assert done.files[0].notes == [
        "left out: 2 cache hits, the first in line 2",
        "left out: 1 failed calls, the first in line 4",
    ]
    assert events(database) == [SPENT]
    assert counts(load(database, file, exported("litellm"))) == (0, 1, 0, 0)


def test_litellm_spend_logs_as_csv(database, tmp_path):
    file = tmp_path / "spend.csv"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(SPEND))
    writer.writeheader()
    for row in (SPEND, {**SPEND, "request_id": "c-2", "cache_hit": "True"}):
        cells = {n: json.dumps(v) if isinstance(v, dict) else v for n, v in row.items()}
        # As PostgreSQL's COPY writes a time without time zone, which is in UTC here.
        writer.writerow(cells | {"startTime": "2026-11-02 10:00:00.123"})
    file.write_text(text.getvalue())
    done = load(database, file, exported("litellm", zone="Asia/Kolkata"))
    assert counts(done) == (1, 0, 0, 0)
    assert events(database) == [SPENT]


@pytest.mark.parametrize(
    ("change", "tenant"),
    [
        ({}, "acme"),
        ({"team_id": None, "end_user": "written by the client"}, "default_user_id"),
        ({"team_id": "", "user": ""}, "88dc28"),
    ],
)
def test_the_tenant_of_litellm_spend_logs(database, write, change, tenant):
    load(database, write([SPEND | change]), exported("litellm"))
    assert [event["tenant_id"] for event in events(database)] == [tenant]


# As LiteLLM 1.110 writes it for a call of Anthropic.
ANTHROPIC_USAGE = {
    "completion_tokens": 30,
    "prompt_tokens": 100,
    "total_tokens": 130,
    "completion_tokens_details": {"reasoning_tokens": 0, "text_tokens": 30},
    "prompt_tokens_details": {
        "audio_tokens": None,
        "cache_write_tokens": 10,
        "cached_tokens": 60,
        "text_tokens": 30,
        "initial_prompt_tokens": None,
        "cache_creation_tokens": 10,
        "cache_creation_token_details": {
            "ephemeral_5m_input_tokens": 3,
            "ephemeral_30m_input_tokens": None,
            "ephemeral_1h_input_tokens": 7,
            "ephemeral_12h_input_tokens": None,
        },
    },
    "cache_creation_input_tokens": 10,
    "cache_read_input_tokens": 60,
    "iterations": None,
    "speed": None,
    "service_tier": "priority",
}


@pytest.mark.parametrize(
    "metadata",
    [
        {"usage_object": ANTHROPIC_USAGE},
        # Without the standard payload there is only this.
        {"usage_object": None, "additional_usage_values": ANTHROPIC_USAGE},
    ],
)
def test_litellm_spend_logs_of_anthropic(database, write, metadata):
    row = {**SPEND, "custom_llm_provider": "anthropic", "metadata": json.dumps(metadata)}
    load(database, write([row]), exported("litellm"))
    assert events(database) == [
        {
            **SPENT,
            "service_tier": "priority",
            "idempotency_key": make_idempotency_key("anthropic", "chatcmpl-1"),
            "provider": "anthropic",
            "cache_write_long_tokens": 7,
            "reasoning_tokens": 0,
        }
    ]


def test_reads_of_responses_are_no_calls(database, write):
    """Only a response of the background is told by the row that bills what was polled."""
    read = {**SPEND, "call_type": "aget_responses", "request_id": "resp_1"}
    polled = {**read, "request_id": "resp_2_background_cost"}
    done = load(
        database,
        write([read, {**read, "call_type": "cancel_responses"}, polled]),
        exported("litellm"),
    )
    assert done.files[0].notes == ["left out: 2 reads of earlier responses, the first in line 1"]
    assert events(database) == [
        {**SPENT, "idempotency_key": make_idempotency_key("openai", "resp_2")}
    ]


def test_litellm_calls_without_a_response_id(database, write):
    row = {**SPEND, "request_id": "None"}
    rows = [{**row, "litellm_call_id": "c-1"}, {**row, "metadata": {"litellm_call_id": "c-2"}}, row]
    done = load(database, write(rows), exported("litellm"))
    assert counts(done) == (2, 0, 0, 1)
    assert {event["idempotency_key"] for event in events(database)} == {
        make_idempotency_key("openai", "c-1"),
        make_idempotency_key("openai", "c-2"),
    }


def test_the_columns_are_those_of_litellm():
    package = Path(find_spec("litellm").origin).parent
    schema = (package / "proxy" / "schema.prisma").read_text()
    table = schema.partition("model LiteLLM_SpendLogs {")[2].partition("}\n")[0]
    columns = {line.split()[0] for line in table.splitlines() if line.strip()}
    assert columns >= SPEND.keys() | {"agent_id", "litellm_call_id"}


def test_litellm_kinds_that_contradict_the_total(database, write):
    more = {"usage_object": {"prompt_tokens_details": {"cached_tokens": 101}}}
    load(database, write([SPEND | {"metadata": more}]), exported("litellm"))
    [event] = events(database)
    assert event["tokens"] == 130
    assert "input_tokens" not in event
    assert "cache read 101" in event["metadata"]["usage_note"]


def test_ids_that_ollama_repeats_are_different_calls(database, write):
    local = SPEND | {"custom_llm_provider": "ollama_chat", "request_id": "chatcmpl-9"}
    rows = [local, {**local, "startTime": "2026-11-02T10:00:00.500Z"}]
    assert counts(load(database, write(rows), exported("litellm"))) == (2, 0, 0, 0)
    assert counts(load(database, write(rows), exported("litellm"))) == (0, 2, 0, 0)


# OpenAI's batches

BATCH = {
    "id": "batch_req_1",
    "custom_id": "row-1",
    "response": {
        "status_code": 200,
        "request_id": "req_1",
        "body": {
            "id": "chatcmpl-5",
            "object": "chat.completion",
            "created": 1793613600,
            "model": "gpt-4o-2024-08-06",
            "choices": [{"message": {"content": "what the model wrote"}}],
            "usage": {
                "prompt_tokens": 20,
                "completion_tokens": 5,
                "total_tokens": 25,
                "prompt_tokens_details": {"cached_tokens": 8},
                "completion_tokens_details": {"reasoning_tokens": 1},
            },
            "service_tier": "default",
        },
    },
    "error": None,
}


def test_openai_batches(database, write):
    responses = {
        "id": "resp_6",
        "object": "response",
        "created_at": 1793613601,
        "model": "gpt-5",
        "usage": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9},
    }
    embedding = {
        "object": "list",
        "data": [],
        "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    failed = {"status_code": 400, "body": {"error": {"message": "no"}}}
    expired = {"code": "batch_expired", "message": "no"}
    file = write(
        [
            BATCH,
            {**BATCH, "id": "b-2", "response": {"status_code": 200, "body": responses}},
            {**BATCH, "id": "b-3", "response": failed},
            {**BATCH, "id": "b-4", "response": None, "error": expired},
        ]
    )
    done = load(database, file, exported("openai-batch", constants="tenant_id=acme"))
    assert counts(done) == (2, 0, 0, 0)
    assert done.files[0].notes == [
        "left out: 1 failed requests (status 400), the first in line 3",
        "left out: 1 failed requests (batch_expired), the first in line 4",
    ]
    assert events(database) == [
        {
            "tenant_id": "acme",
            "idempotency_key": make_idempotency_key("openai", "chatcmpl-5"),
            "tokens": 25,
            "input_tokens": 20,
            "output_tokens": 5,
            "cache_read_tokens": 8,
            "reasoning_tokens": 1,
            "model": "gpt-4o-2024-08-06",
            "provider": "openai",
            "service_tier": "batch",
            "metadata": {"custom_id": "row-1"},
            "occurred_at": DAY,
        },
        {
            "tenant_id": "acme",
            "idempotency_key": make_idempotency_key("openai", "resp_6"),
            "tokens": 9,
            "input_tokens": 7,
            "output_tokens": 2,
            "model": "gpt-5",
            "provider": "openai",
            "service_tier": "batch",
            "metadata": {"custom_id": "row-1"},
            "occurred_at": "2026-11-02T10:00:01+00:00",
        },
    ]
    untimed = write([{**BATCH, "response": {"status_code": 200, "body": embedding}}], "e.jsonl")
    done = load(database, untimed, exported("openai-batch", constants="tenant_id=acme"))
    assert counts(done) == (0, 0, 0, 1)
    assert done.files[0].problems[0].reason.startswith("occurred_at: missing; must be in the file")
    how = exported("openai-batch", constants=f"tenant_id=acme,occurred_at={DAY}")
    assert counts(load(database, untimed, how)) == (1, 0, 0, 0)
    [event] = [event for event in events(database) if event["tokens"] == 4]
    assert (event["input_tokens"], event["output_tokens"]) == (4, 0)
    assert event["idempotency_key"] == make_idempotency_key("openai", "batch_req_1")


def test_batches_of_azure_have_no_id(database, write):
    """Their responses are recognized by the filter's results, and embeddings by the request."""
    body = {**BATCH["response"]["body"], "prompt_filter_results": []}
    embedding = {"data": [], "model": "text-embedding-3-small", "usage": {"prompt_tokens": 4}}
    rows = [
        {"custom_id": "1", "response": {"status_code": 200, "request_id": "r-1", "body": body}},
        {
            "custom_id": "2",
            "response": {"status_code": 200, "request_id": "r-2", "body": embedding},
        },
        {"custom_id": "3", "response": {"status_code": 200, "body": embedding}},
    ]
    how = exported("openai-batch", constants=f"tenant_id=acme,occurred_at={DAY}")
    done = load(database, write(rows), how)
    assert counts(done) == (2, 0, 0, 1)
    assert done.files[0].problems[0].reason.startswith("id: missing; must be there if ")
    assert sorted(event["idempotency_key"] for event in events(database)) == sorted(
        [
            make_idempotency_key("azure.ai.openai", "chatcmpl-5"),
            make_idempotency_key("openai", "r-2"),
        ]
    )


def test_responses_of_a_batch_without_usage_are_refused(database, write):
    moderation = {"status_code": 200, "body": {"id": "modr-1", "results": []}}
    how = exported("openai-batch", constants="tenant_id=acme")
    done = load(database, write([{**BATCH, "response": moderation}]), how)
    assert counts(done) == (0, 0, 0, 1)
    assert "no usage of a known form" in done.files[0].problems[0].reason


def test_a_batch_does_not_tell_its_tenant(database, write):
    with pytest.raises(LoadError, match="says no tenant_id: name its column with --columns"):
        load(database, write([BATCH]), exported("openai-batch"))
    load(database, write([BATCH]), exported("openai-batch", "tenant_id=custom_id"))
    assert [event["tenant_id"] for event in events(database)] == ["row-1"]


def test_a_batch_is_no_csv(tmp_path, database):
    file = tmp_path / "batch.csv"
    file.write_text("id,custom_id\n1,2\n")
    with pytest.raises(
        LoadError, match="OpenAI's batch API does not write CSV: say --format jsonl"
    ):
        load(database, file, exported("openai-batch", constants="tenant_id=acme"))


# Langfuse

GENERATION = {
    "id": "obs-1",
    "traceId": "trace-1",
    "type": "GENERATION",
    "startTime": "2026-11-02T10:00:00.000Z",
    "model": "claude-sonnet-4-5",
    "userId": "acme",
    "sessionId": "s-1",
    "input": "what people wrote",
    "usageDetails": {
        "input": 40,
        "input_cached_tokens": 1000,
        "input_cache_creation": 100,
        "output": 90,
        "output_reasoning_tokens": 10,
        "total": 1240,
    },
}
GENERATED = {
    "tenant_id": "acme",
    "idempotency_key": make_idempotency_key("langfuse", "obs-1"),
    "tokens": 1240,
    "input_tokens": 1140,
    "output_tokens": 100,
    "cache_read_tokens": 1000,
    "cache_write_tokens": 100,
    "reasoning_tokens": 10,
    "model": "claude-sonnet-4-5",
    "conversation_id": "s-1",
    "metadata": {},
    "occurred_at": DAY,
}


def test_langfuse_observations(database, write):
    file = write(
        [
            GENERATION,
            {**GENERATION, "id": "obs-2", "type": "SPAN"},
            {**GENERATION, "id": "obs-3", "type": "AGENT"},
            {**GENERATION, "id": "obs-4", "usageDetails": {}},
        ]
    )
    done = load(database, file, exported("langfuse"))
    assert counts(done) == (1, 0, 0, 0)
    assert done.files[0].notes == [
        "left out: 2 observations that are no generations, the first in line 2",
        "left out: 1 generations without usage, the first in line 4",
    ]
    assert events(database) == [GENERATED]
    assert counts(load(database, file, exported("langfuse"))) == (0, 1, 0, 0)


def test_langfuse_blob_storage_as_csv(database, tmp_path):
    file = tmp_path / "observations.csv"
    usage = json.dumps(GENERATION["usageDetails"]).replace('"', '""')
    file.write_text(
        "id,type,start_time,provided_model_name,usage_details,user_id,session_id\n"
        f'obs-1,GENERATION,2026-11-02 10:00:00.000000,claude-sonnet-4-5,"{usage}",acme,s-1\n'
    )
    assert counts(load(database, file, exported("langfuse"))) == (1, 0, 0, 0)
    assert events(database) == [GENERATED]


@pytest.mark.parametrize(
    ("details", "event"),
    [
        ({"input": 5, "output": 2}, (7, 5, 2, None)),
        ({"input": 5, "output": 2, "cache_read_input_tokens": 3}, (10, 8, 2, 3)),
        # The input contains the cache, as a program sent it that did not subtract.
        ({"input": 5, "output": 2, "input_cached_tokens": 3, "total": 7}, (7, 5, 2, 3)),
        # Neither reading gives the total: it is kept, and nothing is guessed.
        ({"input": 5, "output": 2, "input_cached_tokens": 3, "total": 9}, (9, None, None, None)),
        ({"input": 4, "total": 4}, (4, 4, 0, None)),
    ],
)
def test_details_of_langfuse_are_disjoint_or_inclusive(database, write, details, event):
    load(database, write([{**GENERATION, "usageDetails": details}]), exported("langfuse"))
    query = "select tokens, input_tokens, output_tokens, cache_read_tokens"
    assert database.rows(f"{query} from token_tracking_raw.usage_events") == [event]


def test_langfuse_json_is_one_array(database, tmp_path):
    file = tmp_path / "export.json"
    file.write_text(json.dumps([GENERATION, {**GENERATION, "id": "obs-2"}, "what people wrote"]))
    done = load(database, file, exported("langfuse"))
    assert counts(done) == (2, 0, 0, 1)
    assert done.files[0].problems[0].reason == "line: a string; must be an object"
    assert counts(load(database, file, exported("langfuse"))) == (0, 2, 0, 1)
    file.write_text("[]")
    assert counts(load(database, file, exported("langfuse"))) == (0, 0, 0, 0)


def test_an_observation_that_was_a_span_has_its_key(database, write):
    """So whatever came from OpenTelemetry to both places counts once."""
    ids = {"traceId": "5b8efff798038103d269b633813fc60c", "id": f"{1:016x}"}
    told = {"gen_ai.provider.name": "openai", "gen_ai.response.id": "chatcmpl-1"}
    details = {"input": 40, "input_cached_tokens": 60, "output": 30, "total": 130}
    seen = {
        **GENERATION,
        **ids,
        "model": "gpt-4o-2024-08-06",
        "metadata": {"attributes": json.dumps(told)},
        "usageDetails": details,
    }
    spans = [
        span(1, **CHAT, gen_ai__response__id="chatcmpl-1"),
        span(2, **{n: v for n, v in CHAT.items() if "provider" not in n}),
    ]
    load(database, write([otlp(*spans, tenant_id="acme")]), exported("otel"))
    rows = [seen, {**seen, "id": f"{2:016x}", "metadata": {}}]
    assert counts(load(database, write(rows), exported("langfuse"))) == (0, 2, 0, 0)


def test_older_columns_of_langfuse(database, write):
    older = {name: value for name, value in GENERATION.items() if name != "usageDetails"}
    rows = [{**older, "promptTokens": 5, "completionTokens": 2, "totalTokens": 7}]
    load(database, write(rows), exported("langfuse"))
    assert [(e["tokens"], e["input_tokens"]) for e in events(database)] == [(7, 5)]


# OpenTelemetry


def attributes(**values: object) -> list[dict[str, object]]:
    kinds = {str: "stringValue", int: "intValue", float: "doubleValue"}
    return [
        {
            "key": name.replace("__", "."),
            "value": {kinds[type(v)]: str(v) if isinstance(v, int) else v},
        }
        for name, v in values.items()
    ]


def span(number: int, **values: object) -> dict[str, object]:
    return {
        "traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": f"{number:016x}",
        "name": "chat gpt-4o",
        "startTimeUnixNano": "1793613600000000000",
        "endTimeUnixNano": "1793613601000000000",
        "attributes": attributes(**values),
    }


def otlp(*spans: object, **resource: object) -> dict[str, object]:
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": attributes(**resource)},
                "scopeSpans": [{"scope": {"name": "any"}, "spans": spans}],
            }
        ]
    }


CHAT = {
    "gen_ai__operation__name": "chat",
    "gen_ai__provider__name": "openai",
    "gen_ai__response__model": "gpt-4o-2024-08-06",
    "gen_ai__usage__input_tokens": 100,
    "gen_ai__usage__output_tokens": 30,
    "gen_ai__usage__cache_read__input_tokens": 60,
    "gen_ai__conversation__id": "c-1",
}


def test_spans(database, write):
    agent = {**CHAT, "gen_ai__operation__name": "invoke_agent"}
    unsaid = {name: value for name, value in CHAT.items() if "operation" not in name}
    older = {
        "llm__request__type": "chat",
        "gen_ai__system": "anthropic",
        "gen_ai__usage__prompt_tokens": 7,
        "gen_ai__usage__completion_tokens": 2,
    }
    file = write(
        [
            otlp(
                span(1, **CHAT, gen_ai__response__id="chatcmpl-1"),
                span(2, **CHAT, gen_ai__response__id="chatcmpl-1"),  # of another instrumentation
                span(3, **agent),
                span(4, **unsaid),
                span(5, http__method="POST"),
                span(6, gen_ai__operation__name="chat"),
                tenant_id="acme",
            ),
            otlp(span(7, **older, tenant_id="zeta"), tenant_id="acme"),
            {"resourceLogs": []},
        ]
    )
    done = load(database, file, exported("otel"))
    assert counts(done) == (2, 1, 0, 0)
    assert done.files[0].notes == [
        "left out: 2 spans of agents and tools, the first in line 1",
        "left out: 1 other spans, the first in line 1",
        "left out: 1 model calls without usage, the first in line 1",
        "left out: 1 lines of other signals, the first in line 3",
    ]
    assert events(database) == [
        {
            "tenant_id": "zeta",
            "idempotency_key": make_idempotency_key(
                "otel", "5b8efff798038103d269b633813fc60c", "0000000000000007"
            ),
            "tokens": 9,
            "input_tokens": 7,
            "output_tokens": 2,
            "provider": "anthropic",
            "metadata": {},
            "occurred_at": DAY,
        },
        {
            "tenant_id": "acme",
            "idempotency_key": make_idempotency_key("openai", "chatcmpl-1"),
            "tokens": 130,
            "input_tokens": 100,
            "output_tokens": 30,
            "cache_read_tokens": 60,
            "model": "gpt-4o-2024-08-06",
            "provider": "openai",
            "conversation_id": "c-1",
            "metadata": {},
            "occurred_at": DAY,
        },
    ]
    assert counts(load(database, file, exported("otel"))) == (0, 3, 0, 0)


SPANS = otlp(span(1, **CHAT), tenant_id="acme")


def test_spans_as_opentelemetry_writes_them(database, tmp_path):
    """An agent's span repeats what the two calls below it tell; one of them has no response id."""
    file = tmp_path / "spans.jsonl"
    provider = TracerProvider(resource=Resource({"tenant_id": "acme"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(FileSpanExporter(file)))
    tracer = provider.get_tracer("tests")
    usage = {"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 2}
    vercel = {"ai.operationId": "ai.streamText.doStream", "gen_ai.system": "anthropic"}
    chat = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai"}
    with tracer.start_as_current_span(
        "agent", attributes={"gen_ai.operation.name": "invoke_agent"}
    ):
        identified = chat | usage | {"gen_ai.response.id": "resp_1", "of": (1, 2), "is": True}
        tracer.start_span("chat", attributes=identified).end()
        call = tracer.start_span("ai.streamText.doStream", attributes=vercel | usage)
        call.end()
        trace.get_current_span().set_attributes(usage)
    provider.shutdown()
    done = load(database, file, exported("otel"))
    assert counts(done) == (2, 0, 0, 0)
    assert done.files[0].notes == ["left out: 1 spans of agents and tools, the first in line 3"]
    ids = call.get_span_context()
    query = "select idempotency_key, provider, tokens from token_tracking_raw.usage_events"
    assert sorted(database.rows(query)) == sorted(
        [
            (make_idempotency_key("openai", "resp_1"), "openai", 9),
            (
                make_idempotency_key(
                    "otel", trace.format_trace_id(ids.trace_id), trace.format_span_id(ids.span_id)
                ),
                "anthropic",
                9,
            ),
        ]
    )


def test_spans_whose_ids_are_no_hexadecimal_digits(database, write):
    """As protobuf's own JSON has them: their key would be another one."""
    call = {**span(2, **CHAT), "traceId": "W47/95gDgQPSaYZWPAOB/g==", "spanId": "AAAAAAAAAAI="}
    done = load(database, write([otlp(span(1, **CHAT), call, tenant_id="acme")]), exported("otel"))
    assert counts(done) == (1, 0, 0, 1)
    assert done.files[0].problems[0].reason.startswith("spanId: not 16 hexadecimal digits")


def test_embeddings_are_embeddings(database, write):
    embedding = {**SPEND, "call_type": "aembedding", "completion_tokens": 0, "total_tokens": 100}
    load(database, write([{**embedding, "metadata": {}}]), exported("litellm"))
    call = {**CHAT, "gen_ai__operation__name": "embeddings"}
    load(database, write([otlp(span(1, **call), tenant_id="acme")]), exported("otel"))
    query = "select distinct token_type from token_tracking_raw.usage_events"
    assert database.rows(query) == [("embedding",)]


# What all have in common


def test_a_response_that_was_tracked_is_known(database, write):
    body = {**BATCH["response"]["body"], "service_tier": "batch"}
    spent = {"id": SPEND["request_id"], "model": SPEND["model"], "choices": []}
    spent["usage"] = SPEND["metadata"]["usage_object"]
    told = {
        "gen_ai.provider.name": "openai",
        "gen_ai.operation.name": "chat",
        "gen_ai.response.model": "gpt-4o-2024-08-06",
        "gen_ai.response.id": "chatcmpl-7",
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 30,
        "gen_ai.usage.cache_read.input_tokens": 60,
    }
    with UsageTracker(dsn=database.url) as tracker:
        for response in (body, spent, told):
            assert tracker.track_response_sync(response, tenant_id="acme")
    how = exported("openai-batch", constants="tenant_id=acme")
    assert counts(load(database, write([BATCH]), how)) == (0, 1, 0, 0)
    assert counts(load(database, write([SPEND]), exported("litellm"))) == (0, 1, 0, 0)
    spans = otlp(span(1, **CHAT, gen_ai__response__id="chatcmpl-7"), tenant_id="acme")
    assert counts(load(database, write([spans]), exported("otel"))) == (0, 1, 0, 0)
    assert database.value(COUNT) == 3


def test_contradictions_keep_only_the_total(database, write):
    body = BATCH["response"]["body"]
    usage = {**body["usage"], "prompt_tokens_details": {"cached_tokens": 21}}
    response = {"status_code": 200, "body": {**body, "usage": usage}}
    how = exported("openai-batch", constants="tenant_id=acme")
    load(database, write([{**BATCH, "response": response}]), how)
    wrong = {**CHAT, "gen_ai__usage__cache_read__input_tokens": 101}
    load(database, write([otlp(span(1, **wrong), tenant_id="acme")]), exported("otel"))
    found = events(database)
    assert [event["tokens"] for event in found] == [25, 130]
    for event in found:
        assert event.keys().isdisjoint({"input_tokens", "output_tokens", "cache_read_tokens"})
        assert event["metadata"]["usage_note"].startswith("only the total is kept: cache read ")
    assert found[0]["metadata"]["custom_id"] == "row-1"


def test_columns_and_constants_override(database, write):
    row = {**SPEND, "metadata": {**SPEND["metadata"], "spend_logs_metadata": {"customer": "zeta"}}}
    how = exported(
        "litellm",
        "tenant_id=metadata.spend_logs_metadata.customer,model=call_type",
        "operation=chat",
    )
    load(database, write([row]), how)
    query = "select tenant_id, model, operation, tokens from token_tracking_raw.usage_events"
    assert database.rows(query) == [("zeta", "acompletion", "chat", 130)]


def test_a_tenant_that_a_named_column_lacks_is_refused(database, write):
    done = load(database, write([SPEND]), exported("litellm", "tenant_id=metadata.customer"))
    assert counts(done) == (0, 0, 0, 1)
    assert done.files[0].problems[0].reason.startswith("tenant_id: missing")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("litellm", "LiteLLM: request_id: missing; must be a row of LiteLLM_SpendLogs"),
        (
            "openai-batch",
            "OpenAI's batch API: custom_id: missing; must be a line of a batch's output, "
            "with response or error",
        ),
        ("langfuse", "Langfuse: type: missing; must be an observation, with id and type"),
        ("otel", "OpenTelemetry: resourceSpans: missing; must be OTLP JSON, one export a line"),
    ],
)
def test_files_of_another_program_are_refused(database, write, name, reason):
    """As a whole, and before anything is loaded; later records one by one."""
    ours = {"litellm": SPEND, "openai-batch": BATCH, "langfuse": GENERATION, "otel": SPANS}[name]
    other = write([{"id": "1"}], "other.jsonl")
    how = exported(name, constants="tenant_id=acme")
    refused = Load(how, database.url)
    with pytest.raises(LoadError) as caught:
        refused.run([Source.of(str(file)) for file in (write([ours]), other)])
    assert str(caught.value) == f"{other}, line 1: not from {reason}"
    assert caught.value.line == 1
    assert refused.files == []
    mixed = load(database, write([ours, {"id": "1"}]), how)
    assert counts(mixed) == (1, 0, 0, 1)
    [problem] = mixed.files[0].problems
    assert (problem.line, problem.reason) == (2, reason.partition(": ")[2])


def test_files_that_are_empty_cut_or_compressed(database, write, tmp_path):
    assert load(database, write([]), exported("litellm")).files[0].notes == ["it is empty"]
    (empty := tmp_path / "spend.csv").touch()
    with pytest.raises(LoadError, match="is empty: its first line must name the columns"):
        load(database, empty, exported("litellm"))
    cut = write([SPEND, SPEND])
    cut.write_text(cut.read_text()[:-20])
    done = load(database, cut, exported("litellm"))
    assert (counts(done), done.files[0].unread) == ((1, 0, 0, 0), 2)
    whole = load(database, cut, replace(exported("litellm"), is_whole=True))
    assert whole.files[0].problems[0].line == 2
    assert whole.files[0].problems[0].reason.startswith("line: no JSON at column ")
    assert "people wrote" not in str(database.rows(REJECTIONS))
    pretty = write([])
    pretty.write_text(json.dumps([SPEND], indent=2))
    with pytest.raises(LoadError, match=r"is JSON over several lines: jq -c \. FILE \| "):
        load(database, pretty, exported("litellm"))
    packed = tmp_path / "export.jsonl"
    packed.write_bytes(gzip.compress(b"{}"))
    with pytest.raises(LoadError, match=r"is compressed: gzip -dc FILE .* --format csv \(or jsonl"):
        load(database, packed, exported("litellm"))


def test_refused_records_are_kept_without_what_people_wrote(database, write):
    broken = {**SPEND, "total_tokens": "many", "prompt_tokens": -1}
    rows = [broken, {**GENERATION, "usageDetails": {"input": 1.5}}]
    assert counts(load(database, write(rows[:1]), exported("litellm")))[3] == 1
    assert counts(load(database, write(rows[1:]), exported("langfuse")))[3] == 1
    kept = database.rows(REJECTIONS)
    assert sorted(payload["line"] for payload, _ in kept) == [
        '{"id": "obs-1", "type": "GENERATION"}',
        '{"request_id": "chatcmpl-1"}',
    ]
    assert "people wrote" not in str(kept)


def test_a_line_longer_than_any_event(database, write):
    long = {**GENERATION, "input": "x" * (LONGEST_EVENT + 1)}
    assert LONGEST_LINE > LONGEST_EVENT
    assert counts(load(database, write([long]), exported("langfuse"))) == (1, 0, 0, 0)


def test_a_column_that_the_header_lacks(database, tmp_path):
    file = tmp_path / "spend.csv"
    file.write_text("request_id,total_tokens\n1,2\n")
    with pytest.raises(LoadError, match=r"no column 'metadata\.team' for tenant_id"):
        load(database, file, exported("litellm", "tenant_id=metadata.team"))
    file.write_text("id,total_tokens\n1,2\n")
    with pytest.raises(LoadError, match="no column 'request_id'"):
        load(database, file, exported("litellm"))


def test_undo_takes_an_export_back(database, write):
    file = write([SPEND, {**SPEND, "request_id": "c-2"}])
    load(database, file, exported("litellm"))
    undo = Undo(exported("litellm"), database.url)
    undo.run([Source.of(str(file))], "a trial")
    assert undo.files[str(file)].voided == 2


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a", 1),
        ("b.c", 2),
        ("d.e", 3),
        ("f.g.h", 4),
        ("j.k", 5),
        ("b.x", None),
        ("x", None),
        ("a.b", None),
        ("", None),
    ],
)
def test_paths_lead_into_objects_and_names_with_dots(path, found):
    record = {"a": 1, "b": {"c": 2}, "d.e": 3, "f.g": {"h": 4}, "j": '{"k": 5}'}
    assert at(record, path) == found


def test_the_command(database, write):
    file = write([SPEND, {**SPEND, "request_id": "c-2", "cache_hit": "True"}])
    done = run("load", "--from", "litellm", file, env=database.env)
    assert done.code == 0, done.err
    assert "left out: 1 cache hits" in done.err
    assert database.value(COUNT) == 1
    done = run("load", "--from", "lightllm", file, env=database.env)
    assert done.code == 1
    assert "'lightllm' is not one of litellm, openai-batch, langfuse, otel" in done.err
