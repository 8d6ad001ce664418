"""Clients of boto3 for `bedrock-runtime`, with the real library."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable

import pytest

from tests.support.instrumented import KINDS, Recorded
from tests.support.libraries import boto3, botocore_config, botocore_exceptions
from tests.support.provider_server import ProviderServer
from token_tracking import (
    SettingsError,
    UsageTracker,
    instrument,
    make_idempotency_key,
    uninstrument,
)

MODEL = "amazon.nova-lite-v1:0"
CLAUDE = "anthropic.claude-sonnet-4-5-v1:0"
EVENT = KINDS | {
    "tenant_id": "acme",
    "token_type": "llm",
    "operation": "query",
    "metadata": {},
    "provider": "aws.bedrock",
    "model": MODEL,
    "cache_read_tokens": 60,
    "cache_write_tokens": 10,
}
LONG = EVENT | {"cache_write_long_tokens": 7, "service_tier": "priority"}


def client_of(server: ProviderServer, session: object = boto3):
    return session.client(
        "bedrock-runtime",
        region_name="us-east-1",
        endpoint_url=server.url,
        aws_access_key_id="-",
        aws_secret_access_key="-",
        config=botocore_config.Config(retries={"max_attempts": 3, "mode": "standard"}),
    )


def asked(prompt: str, model: str = MODEL) -> dict:
    return {"modelId": model, "messages": [{"role": "user", "content": [{"text": prompt}]}]}


def invoked(prompt: str, model: str) -> dict:
    return {"modelId": model, "body": json.dumps({"prompt": prompt})}


def without_headers(answer: dict) -> dict:
    return {name: value for name, value in answer.items() if name != "ResponseMetadata"}


def converse(client, prompt: str) -> list:
    return [without_headers(client.converse(**asked(prompt)))]


def converse_stream(client, prompt: str) -> list:
    stream = client.converse_stream(**asked(prompt))["stream"]
    return [type(stream), *stream]


def invoke(client, prompt: str) -> list:
    body = client.invoke_model(**invoked(prompt, MODEL))["body"]
    return [type(body), body.read()]


@pytest.fixture
def client(provider_server: ProviderServer, tracker: UsageTracker):
    client = client_of(provider_server)
    yield instrument(client, tenant_id="acme", tracker=tracker)
    client.close()


@pytest.mark.parametrize("call", [converse, converse_stream, invoke])
def test_a_call_is_recorded_and_looks_the_same(
    call: Callable[[object, str], list],
    client,
    provider_server: ProviderServer,
    recorded: Recorded,
):
    plain = client_of(provider_server)
    assert call(client, "b") == call(plain, "b")
    plain.close()
    event = EVENT | {"idempotency_key": make_idempotency_key("aws.bedrock", "req-b")}
    if call is invoke:  # whose headers tell only the sums
        del event["cache_read_tokens"], event["cache_write_tokens"]
    assert recorded.event() == event
    assert recorded.tracker.stats().cut_streams == 0


def test_embeddings(client, recorded: Recorded):
    client.invoke_model(**invoked("e", "amazon.titan-embed-text-v2:0"))["body"].read()
    event = recorded.event()
    assert (event["token_type"], event["tokens"]) == ("embedding", 8)
    assert (event["input_tokens"], event["output_tokens"]) == (8, 0)


def test_another_client_of_the_session_is_not_tracked(
    provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    session = boto3.Session()
    one, other = client_of(provider_server, session), client_of(provider_server, session)
    instrument(one, tenant_id="acme", tracker=tracker)
    converse(other, "other")
    other.close()
    one.close()
    assert recorded.events() == []


def test_aiobotocore_is_refused(client):
    kind = type("Client", (type(client),), {"__module__": "aiobotocore.client"})
    with pytest.raises(SettingsError, match=r"aiobotocore\.client\.Client"):
        instrument(kind.__new__(kind))


def in_block(body) -> bytes:
    with body as raw:
        return raw.read()


def into_buffer(body) -> bytes:
    buffer, got = bytearray(50), b""
    while size := body.readinto(buffer):
        got += buffer[:size]
    return got


READS: dict[str, Callable[[object], bytes]] = {
    "read": lambda body: body.read(),
    "parts": lambda body: b"".join(iter(lambda: body.read(50), b"")),
    "lines": lambda body: b"\n".join(body.iter_lines()),
    "chunks": lambda body: b"".join(body.iter_chunks(64)),
    "read lines": lambda body: b"".join(body.readlines()),
    "block": in_block,
    "buffer": into_buffer,
    "load": lambda body: json.dumps(json.load(body), separators=(",", ":")).encode(),
}


@pytest.mark.parametrize("name", READS)
def test_a_body_tells_its_usage_however_it_is_read(name: str, client, recorded: Recorded):
    body = client.invoke_model(**invoked("i", CLAUDE))["body"]
    assert json.loads(READS[name](body))["id"] == "msg_i"
    # While the body is still held:
    assert recorded.event() == LONG | {
        "model": CLAUDE,
        "idempotency_key": make_idempotency_key("aws.bedrock", "msg_i"),
    }


def test_a_stream_of_invoked_events(client, recorded: Recorded):
    answer = client.invoke_model_with_response_stream(**invoked("s", CLAUDE))
    kinds = [json.loads(event["chunk"]["bytes"])["type"] for event in answer["body"]]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert recorded.event() == LONG | {
        "model": CLAUDE,
        "idempotency_key": make_idempotency_key("aws.bedrock", "msg_s"),
    }


def test_a_stream_of_another_models_events(client, recorded: Recorded):
    answer = client.invoke_model_with_response_stream(**invoked("l", MODEL))
    assert len(list(answer["body"])) == 3
    event = recorded.event()
    assert (event["tokens"], event["input_tokens"], event["output_tokens"]) == (130, 100, 30)
    assert event["idempotency_key"] == make_idempotency_key("aws.bedrock", "req-l")


def test_a_body_that_is_closed_is_counted(client, recorded: Recorded):
    body = client.invoke_model(**invoked("c", MODEL))["body"]
    assert body.read(5) == b'{"gen'
    body.close()
    assert recorded.event()["tokens"] == 130


def test_the_raw_stream_is_the_same(client, provider_server: ProviderServer):
    plain = client_of(provider_server)
    bodies = [one.invoke_model(**invoked("t", CLAUDE))["body"] for one in (client, plain)]
    raws = [body.__enter__() for body in bodies]
    assert type(raws[0]) is type(raws[1])
    assert list(raws[0]) == list(raws[1])
    plain.close()


def test_a_body_that_nobody_reads_is_counted_when_it_is_freed(
    client, tracker: UsageTracker, recorded: Recorded
):
    gc.disable()  # what the library frees by counting references is still freed so
    try:
        body = client.invoke_model(**invoked("n", MODEL))["body"]
        raw = weakref.ref(body.__enter__())
        del body
        assert raw() is None
    finally:
        gc.enable()
    assert recorded.event()["tokens"] == 130


def closed(stream) -> None:
    next(iter(stream))
    stream.close()


def dropped(stream) -> None:
    next(iter(stream))
    del stream
    gc.collect()


# The library leaves the connection open, with or without us.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("end", [closed, dropped])
def test_a_stream_that_ends_early_is_partial(end, client, recorded: Recorded):
    end(client.converse_stream(**asked("early"))["stream"])
    whole = make_idempotency_key("aws.bedrock", "req-early")
    assert recorded.event() == {
        "tenant_id": "acme",
        "token_type": "llm",
        "operation": "query",
        "provider": "aws.bedrock",
        "model": MODEL,
        "tokens": 0,
        "metadata": {"usage": "partial"},
        "idempotency_key": make_idempotency_key(whole, "partial"),
    }
    assert recorded.tracker.stats().cut_streams == 1


def test_a_stream_that_is_cut_is_partial(client, recorded: Recorded):
    stream = client.converse_stream(**asked("cut", f"{MODEL}-cut"))["stream"]
    with pytest.raises(
        Exception, match=r"InvalidChunkLength|IncompleteRead|Response ended prematurely"
    ):
        list(stream)
    assert recorded.event()["metadata"] == {"usage": "partial"}
    assert recorded.tracker.stats().cut_streams == 1


def test_an_error_amid_a_stream_is_partial_at_once(
    client, tracker: UsageTracker, recorded: Recorded
):
    stream = client.converse_stream(**asked("breaks", f"{MODEL}-breaks"))["stream"]
    with pytest.raises(botocore_exceptions.EventStreamError, match="as asked"):
        list(stream)
    assert tracker.stats().cut_streams == 1
    stream.close()
    assert recorded.event()["metadata"] == {"usage": "partial"}


def test_an_error_of_the_provider_is_no_event(client, recorded: Recorded):
    with pytest.raises(botocore_exceptions.ClientError):
        client.converse(**asked("no", "fails"))
    assert recorded.events() == []


def test_retries_of_the_library_are_one_response(
    client, provider_server: ProviderServer, recorded: Recorded
):
    client.converse(**asked("retry", "flaky"))
    assert provider_server.attempts["retry"] == 2
    assert recorded.event()["tokens"] == 130


def test_it_is_undone_and_can_be_done_again(client, tracker: UsageTracker, recorded: Recorded):
    uninstrument(client)
    converse(client, "undone")
    instrument(client, tenant_id="again", tracker=tracker)
    converse(client, "again")
    assert recorded.event()["tenant_id"] == "again"
