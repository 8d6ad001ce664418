"""`instrument` itself: which clients, under which ids, twice, undone, and what it never does."""

from __future__ import annotations

import copy
import gc
import logging
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import Database
from tests.support.instrumented import Recorded
from tests.support.libraries import anthropic, boto3, genai, mistralai, openai
from tests.support.provider_server import ProviderServer
from token_tracking import (
    SettingsError,
    UsageTracker,
    instrument,
    make_idempotency_key,
    uninstrument,
    usage_context,
)
from token_tracking.instrumentation import call as call_module

REJECTIONS = "select payload, reason from token_tracking_raw.usage_event_rejections"


def openai_client(server: ProviderServer) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)


def anthropic_client(server: ProviderServer) -> Any:
    return anthropic.Anthropic(base_url=server.url, api_key="-")


def ask(client: openai.OpenAI, prompt: str, **more: object):
    messages = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(model="gpt-4o", messages=messages, **more)


@pytest.fixture
def client(provider_server: ProviderServer):
    with openai_client(provider_server) as client:
        yield client


def state_of(client: object) -> dict[str, object]:
    return copy.copy(vars(client))


def test_instrumenting_twice_does_nothing(
    client: openai.OpenAI, tracker: UsageTracker, recorded: Recorded
):
    assert instrument(client, tenant_id="acme", tracker=tracker) is client
    once = state_of(client)
    assert instrument(client, tenant_id="other", tracker=tracker) is client
    assert state_of(client) == once
    ask(client, "twice")
    assert recorded.event()["tenant_id"] == "acme"


@pytest.mark.parametrize("make", [openai_client, anthropic_client])
def test_it_is_undone_exactly(make: Callable, provider_server: ProviderServer):
    with make(provider_server) as client:
        before = state_of(client)
        instrument(client, tenant_id="acme")
        assert state_of(client) != before
        assert uninstrument(client) is client
        assert state_of(client) == before
        assert uninstrument(client) is client


def test_an_uninstrumented_client_is_not_tracked(
    client: openai.OpenAI, tracker: UsageTracker, recorded: Recorded
):
    instrument(client, tenant_id="acme", tracker=tracker)
    copied = client.copy()
    stream = ask(client, "begun", stream=True)
    uninstrument(client)
    ask(client, "after")
    list(stream)
    ask(copied, "copy")
    assert len(recorded.events()) == 2  # the stream that had begun, and the copy's call


def test_what_was_set_on_the_client_before_comes_back(client: openai.OpenAI, tracker: UsageTracker):
    own = client.request

    def request(*args: object, **kwargs: object) -> object:
        return own(*args, **kwargs)

    client.request = request  # type: ignore[method-assign]
    uninstrument(instrument(client, tenant_id="acme", tracker=tracker))
    assert client.request is request


def test_what_was_set_on_the_client_later_stays(
    client: openai.OpenAI, tracker: UsageTracker, recorded: Recorded
):
    instrument(client, tenant_id="acme", tracker=tracker)
    ours = client.request

    def request(*args: object, **kwargs: object) -> object:
        return ours(*args, **kwargs)

    client.request = request  # type: ignore[method-assign]
    uninstrument(client)
    assert client.request is request
    ask(client, "undone")
    assert recorded.events() == []


def test_the_context_takes_precedence_for_each_id(
    client: openai.OpenAI, tracker: UsageTracker, recorded: Recorded
):
    instrument(client, tenant_id="t", agent_id="a", operation="internal", tracker=tracker)
    with usage_context(tenant_id="tt", conversation_id="c", operation="chat"):
        ask(client, "1")
    ask(client, "2")
    kinds = ("tenant_id", "agent_id", "conversation_id", "operation")
    assert [[event.get(kind) for kind in kinds] for event in recorded.events()] == [
        ["t", "a", None, "internal"],
        ["tt", "a", "c", "chat"],
    ]


def test_a_call_without_tenant_is_kept_and_told_once(
    client: openai.OpenAI,
    tracker: UsageTracker,
    recorded: Recorded,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(call_module, "_said", set())
    instrument(client, tracker=tracker)
    caplog.set_level(logging.WARNING, "token_tracking")
    ask(client, "1")
    ask(client, "2", stream=True).close()
    assert recorded.events() == []
    stats = tracker.stats()
    assert (stats.without_tenant, stats.rejected, stats.cut_streams) == (2, 2, 1)
    [message] = [record.message for record in caplog.records]
    assert "has no tenant" in message
    kept = recorded.database.rows(REJECTIONS)
    assert sorted(payload["tokens"] for payload, _ in kept) == [0, 130]
    assert all(reason.startswith("tenant_id: ") for _, reason in kept)


def test_threads_have_contexts_of_their_own(
    client: openai.OpenAI, tracker: UsageTracker, recorded: Recorded
):
    def call(number: int) -> None:
        with usage_context(tenant_id=f"t{number}"):
            stream = ask(client, f"t{number}", stream=True)
        list(stream)

    instrument(client, tenant_id="nobody", tracker=tracker)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(call, range(8)))
    keys = [
        (f"t{number}", make_idempotency_key("openai", f"chatcmpl-t{number}")) for number in range(8)
    ]
    events = recorded.events()
    assert [(event["tenant_id"], event["idempotency_key"]) for event in events] == keys


def test_a_closed_tracker_harms_no_call(client: openai.OpenAI, tracker: UsageTracker):
    instrument(client, tenant_id="acme", tracker=tracker)
    stream = ask(client, "open", stream=True)
    tracker.close()
    assert len(list(stream)) == 5
    assert ask(client, "closed").usage.total_tokens == 130
    assert tracker.stats().refused == 2


def test_a_response_without_id_is_an_event_of_its_own(
    client: openai.OpenAI, tracker: UsageTracker, recorded: Recorded
):
    instrument(client, tenant_id="acme", tracker=tracker)
    for _ in range(2):
        client.embeddings.create(model="text-embedding-3-small", input="e")
    first, second = recorded.events()
    assert first["idempotency_key"] != second["idempotency_key"]


def test_a_response_that_is_tracked_too_is_one_event(
    client: openai.OpenAI, tracker: UsageTracker, recorded: Recorded
):
    instrument(client, tenant_id="acme", tracker=tracker)
    assert tracker.track_response_sync(ask(client, "both"), tenant_id="acme")
    assert recorded.event()["tokens"] == 130
    assert tracker.stats().duplicate == 1


def google_client(server: ProviderServer) -> Any:
    return genai.Client(api_key="-", http_options={"base_url": server.url})


def mistral_client(server: ProviderServer) -> Any:
    return mistralai.Mistral(api_key="-", server_url=server.url)


def bedrock_client(server: ProviderServer) -> Any:
    keys = {"aws_access_key_id": "-", "aws_secret_access_key": "-"}
    return boto3.client("bedrock-runtime", region_name="us-east-1", endpoint_url=server.url, **keys)


@pytest.mark.parametrize(
    "make", [openai_client, anthropic_client, google_client, mistral_client, bedrock_client]
)
def test_nothing_keeps_a_client_alive(make: Callable, provider_server: ProviderServer):
    client = make(provider_server)
    weakly = weakref.ref(instrument(client, tenant_id="acme"))
    if make is not mistral_client:  # which has no such method
        client.close()
    del client
    gc.collect()
    assert weakly() is None


def test_a_fault_of_the_tracking_never_reaches_the_caller(
    client: openai.OpenAI,
    tracker: UsageTracker,
    recorded: Recorded,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret")

    instrument(client, tenant_id="acme", tracker=tracker)
    for place in (
        "token_tracking.responses.usage.reported_by",
        "token_tracking.instrumentation.openai_anthropic._http_response",
        "token_tracking.instrumentation.bodies._data_of",
        "token_tracking.instrumentation.call.current_context",
        "token_tracking.instrumentation.openai_anthropic.StreamedChat.__init__",
        "token_tracking.instrumentation.openai_anthropic._asking_for_usage",
        "token_tracking.instrumentation.instrument.replace",
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, fail)
            assert ask(client.copy(), "fault").usage.total_tokens == 130
            assert ask(client, "fault").usage.total_tokens == 130
            chunks = list(ask(client, "fault", stream=True))
            texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
            assert texts == ["", "Hello", " world", "!", None]
    assert "a secret" not in caplog.text
    assert "RuntimeError" in caplog.text


def test_a_call_does_not_wait_for_the_database(provider_server: ProviderServer, tmp_path: Path):
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,  # takes connections, answers nothing
        UsageTracker(
            dsn=f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/none",
            spool_dir=tmp_path,
            max_wait=2,
        ) as tracker,
        openai_client(provider_server) as client,
    ):
        instrument(client, tenant_id="acme", tracker=tracker)
        ask(client, "u1")
        ask(client, "u2")
        assert tracker.stats().waiting == 2
        tracker.close()
        assert tracker.stats().spooled == 2


def test_a_tracker_that_is_off_changes_nothing(
    client: openai.OpenAI, provider_server: ProviderServer, emptied: Database
):
    with UsageTracker(dsn=emptied.url, enabled=False) as tracker:
        instrument(client, tenant_id="acme", tracker=tracker)
        list(ask(client, "off", stream=True))
    [(_, body)] = provider_server.requests
    assert "stream_options" not in body
    assert emptied.rows("select 1 from token_tracking_raw.usage_events") == []


@pytest.mark.parametrize("other", [object, dict])
def test_another_object_is_refused(other: type):
    with pytest.raises(SettingsError, match=r"must be a client of openai, anthropic, google-genai"):
        instrument(other())


def test_importing_and_instrumenting_load_no_other_library():
    script = (
        "import sys, token_tracking\n"
        "token_tracking.instrument, token_tracking.track_response, token_tracking.usage_of\n"
        "names = 'openai anthropic google.genai mistralai boto3 botocore httpx psycopg'.split()\n"
        "print([name for name in names if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[]\n"
