"""Clients of google-genai, with the real library."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from google import genai
from google.genai.errors import ClientError

from tests.support.instrumented import KINDS, Recorded
from tests.support.provider_server import ProviderServer
from token_tracking import UsageTracker, instrument, make_idempotency_key, usage_context

MODEL = "gemini-2.5-flash"
EVENT = KINDS | {
    "tenant_id": "acme",
    "token_type": "llm",
    "operation": "query",
    "metadata": {},
    "provider": "gcp.gemini",
    "model": "gemini-2.5-flash-001",
    "cache_read_tokens": 60,
    "cache_write_tokens": 0,
    "reasoning_tokens": 12,
}


def client_of(server: ProviderServer) -> genai.Client:
    return genai.Client(api_key="-", http_options={"base_url": server.url})


def seen(items) -> list:
    dumped = [item.model_dump(exclude={"sdk_http_response"}) for item in items]
    return [(type(item), one) for item, one in zip(items, dumped, strict=True)]


CALLS: dict[str, Callable[[genai.Client, str], list]] = {
    "whole": lambda client, prompt: seen(
        [client.models.generate_content(model=MODEL, contents=prompt)]
    ),
    "stream": lambda client, prompt: seen(
        list(client.models.generate_content_stream(model=MODEL, contents=prompt))
    ),
    "chat": lambda client, prompt: seen([client.chats.create(model=MODEL).send_message(prompt)]),
    "chat stream": lambda client, prompt: seen(
        list(client.chats.create(model=MODEL).send_message_stream(prompt))
    ),
}


@pytest.fixture
def client(provider_server: ProviderServer, tracker: UsageTracker):
    client = client_of(provider_server)
    yield instrument(client, tenant_id="acme", tracker=tracker)
    client.close()


@pytest.mark.parametrize("name", CALLS)
def test_content_is_recorded_and_looks_the_same(
    name: str, client: genai.Client, provider_server: ProviderServer, recorded: Recorded
):
    plain = client_of(provider_server)
    assert CALLS[name](client, name) == CALLS[name](plain, name)
    plain.close()
    key = make_idempotency_key("gcp.gemini", name)
    assert recorded.event() == EVENT | {"idempotency_key": key}
    assert recorded.tracker.stats().cut_streams == 0


def test_a_stream_is_of_the_type_that_it_was(client: genai.Client, provider_server: ProviderServer):
    plain = client_of(provider_server)
    wanted = {"model": MODEL, "contents": "t"}
    streams = [one.models.generate_content_stream(**wanted) for one in (client, plain)]
    assert type(streams[0]) is type(streams[1])
    plain.close()


def test_a_stream_is_its_callers_wherever_it_is_read(client: genai.Client, recorded: Recorded):
    with usage_context(tenant_id="caller"):
        stream = client.models.generate_content_stream(model=MODEL, contents="s")
    with usage_context(tenant_id="reader", agent_id="reader"):
        next(stream)
    list(stream)
    event = recorded.event()
    assert (event["tenant_id"], event["tokens"]) == ("caller", 130)
    assert "agent_id" not in event


def test_an_error_of_the_provider_is_no_event(client: genai.Client, recorded: Recorded):
    with pytest.raises(ClientError):
        client.models.generate_content(model=f"{MODEL}-fails", contents="no")
    with pytest.raises(ClientError):
        list(client.models.generate_content_stream(model=f"{MODEL}-fails", contents="no"))
    assert recorded.events() == []


@pytest.mark.parametrize("model", [MODEL, f"{MODEL}-cut"])
def test_a_stream_that_ends_early_tells_its_running_sum(
    model: str, client: genai.Client, recorded: Recorded
):
    stream = client.models.generate_content_stream(model=model, contents="early")
    if "cut" in model:
        with pytest.raises(Exception, match="peer closed connection"):
            list(stream)
    else:
        next(stream)
        stream.close()
    assert recorded.event() == EVENT | {
        "tokens": 118,
        "output_tokens": 18,
        "metadata": {"usage": "partial"},
        "idempotency_key": make_idempotency_key("gcp.gemini", "early"),
    }
    assert recorded.tracker.stats().cut_streams == 1


async def whole(client: genai.Client) -> list:
    return seen([await client.aio.models.generate_content(model=MODEL, contents="a")])


async def stream(client: genai.Client) -> list:
    chunks = await client.aio.models.generate_content_stream(model=MODEL, contents="a")
    return seen([chunk async for chunk in chunks])


@pytest.mark.parametrize("work", [whole, stream])
def test_asynchronous_content_is_recorded_and_looks_the_same(
    work, provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    async def main(is_instrumented: bool) -> list:
        client = client_of(provider_server)
        if is_instrumented:
            instrument(client, tenant_id="acme", tracker=tracker)
        answer = await work(client)
        await client.aio.aclose()
        client.close()
        return answer

    assert asyncio.run(main(True)) == asyncio.run(main(False))
    key = make_idempotency_key("gcp.gemini", "a")
    assert recorded.event() == EVENT | {"idempotency_key": key}


def test_a_cancelled_stream_is_partial(
    provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    async def main() -> None:
        client = instrument(client_of(provider_server), tenant_id="acme", tracker=tracker)
        got = asyncio.Event()

        async def consume() -> None:
            wanted = {"model": f"{MODEL}-waits", "contents": "x"}
            async for _ in await client.aio.models.generate_content_stream(**wanted):
                got.set()

        task = asyncio.create_task(consume())
        await got.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.aio.aclose()
        client.close()

    asyncio.run(main())
    event = recorded.event()
    assert (event["tokens"], event["metadata"]) == (118, {"usage": "partial"})
