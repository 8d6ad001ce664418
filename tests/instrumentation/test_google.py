"""Clients of google-genai, with the real library."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest

from tests.support.instrumented import KINDS, Recorded, cancel_amid
from tests.support.libraries import genai
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


def client_of(server: ProviderServer, **options: object) -> genai.Client:
    return genai.Client(api_key="-", http_options={"base_url": server.url, **options})


def aiohttp_client(server: ProviderServer) -> genai.Client:
    return client_of(server)


def httpx_client(server: ProviderServer) -> genai.Client:
    return client_of(server, async_client_args={"transport": httpx.AsyncHTTPTransport()})


# google-genai, which takes aiohttp where that is installed, makes a subclass of its session.
aiohttp_warns = pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")


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


def test_embeddings(client: genai.Client, recorded: Recorded):
    client.models.embed_content(model="gemini-embedding-001", contents="e")
    event = recorded.event()
    assert (event["token_type"], event["tokens"], event["model"]) == (
        "embedding",
        8,
        "gemini-embedding-001",
    )


def test_a_blocked_prompt_is_whole(client: genai.Client, recorded: Recorded):
    list(client.models.generate_content_stream(model=f"{MODEL}-blocked", contents="b"))
    event = recorded.event()
    assert (event["tokens"], event["input_tokens"], event["metadata"]) == (100, 100, {})


def test_a_chunk_without_usage_takes_nothing_back(client: genai.Client, recorded: Recorded):
    stream = client.models.generate_content_stream(model=f"{MODEL}-sparse", contents="s")
    assert [next(stream).text, next(stream).text] == ["Hello", " world"]
    stream.close()
    event = recorded.event()
    assert (event["tokens"], event["metadata"]) == (118, {"usage": "partial"})


def test_vertex_ai(provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded):
    options = {"base_url": provider_server.url}
    client = genai.Client(vertexai=True, api_key="-", http_options=options)
    instrument(client, tenant_id="acme", tracker=tracker)
    client.models.generate_content(model=MODEL, contents="v")
    client.close()
    key = make_idempotency_key("gcp.vertex_ai", "v")
    assert recorded.event() == EVENT | {"provider": "gcp.vertex_ai", "idempotency_key": key}


def test_a_stream_is_its_callers_wherever_it_is_read(client: genai.Client, recorded: Recorded):
    with usage_context(tenant_id="caller"):
        stream = client.models.generate_content_stream(model=MODEL, contents="s")
    with usage_context(tenant_id="reader", agent_id="reader"):
        next(stream)
    list(stream)
    event = recorded.event()
    assert (event["tenant_id"], event["tokens"]) == ("caller", 130)
    assert "agent_id" not in event


@pytest.mark.parametrize("is_async", [False, True])
def test_closing_a_stream_closes_the_librarys(is_async: bool, provider_server: ProviderServer):
    """Which holds connections to tools, perhaps."""
    ended = []

    def chunks():
        try:
            yield from (1, 2)
        finally:
            ended.append(True)

    async def async_chunks():
        try:
            yield 1
            yield 2
        finally:
            ended.append(True)

    async def stream() -> object:
        return async_chunks()

    async def close_async(client: genai.Client) -> None:
        held = await client.aio.models.generate_content_stream()
        assert await anext(held) == 1
        await held.aclose()
        assert ended == [True]

    client = client_of(provider_server)
    client.models.generate_content_stream = chunks  # type: ignore[method-assign]
    client.aio.models.generate_content_stream = stream  # type: ignore[method-assign]
    instrument(client, tenant_id="acme")
    if is_async:
        asyncio.run(close_async(client))
    else:
        held = client.models.generate_content_stream()
        assert next(held) == 1
        held.close()
        assert ended == [True]
    client.close()


def test_an_error_of_the_provider_is_no_event(client: genai.Client, recorded: Recorded):
    with pytest.raises(genai.errors.ClientError):
        client.models.generate_content(model=f"{MODEL}-fails", contents="no")
    with pytest.raises(genai.errors.ClientError):
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


def test_a_text_that_looks_like_the_end_is_not(client: genai.Client, recorded: Recorded):
    with pytest.raises(Exception, match="peer closed connection"):
        list(client.models.generate_content_stream(model=f"{MODEL}-marks-cut", contents="x"))
    event = recorded.event()
    assert (event["tokens"], event["metadata"]) == (118, {"usage": "partial"})


def test_a_tool_calls_under_its_own_ids(
    client: genai.Client, provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    """The library calls it while the caller asks for a chunk."""
    other = instrument(client_of(provider_server), tenant_id="other", tracker=tracker)

    def look_up() -> str:
        with usage_context(agent_id="tool"):
            client.models.generate_content(model=MODEL, contents="inner")
        other.models.generate_content(model=MODEL, contents="other")
        return "found"

    wanted = {"model": f"{MODEL}-tools", "contents": "t", "config": {"tools": [look_up]}}
    with usage_context(agent_id="outer"):
        stream = client.models.generate_content_stream(**wanted)
    list(stream)
    other.close()
    owners = [(event["tenant_id"], event.get("agent_id")) for event in recorded.events()]
    assert sorted(owners, key=str) == [
        ("acme", "outer"),
        ("acme", "outer"),
        ("acme", "tool"),
        ("other", None),
    ]


async def whole(client: genai.Client) -> list:
    return seen([await client.aio.models.generate_content(model=MODEL, contents="a")])


async def stream(client: genai.Client) -> list:
    chunks = await client.aio.models.generate_content_stream(model=MODEL, contents="a")
    return seen([chunk async for chunk in chunks])


async def chat(client: genai.Client) -> list:
    return seen([await client.aio.chats.create(model=MODEL).send_message("a")])


@aiohttp_warns
@pytest.mark.parametrize("make", [aiohttp_client, httpx_client])
@pytest.mark.parametrize("work", [whole, stream, chat])
def test_asynchronous_content_is_recorded_and_looks_the_same(
    work, make, provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    async def main(is_instrumented: bool) -> list:
        client = make(provider_server)
        if is_instrumented:
            instrument(client, tenant_id="acme", tracker=tracker)
        answer = await work(client)
        await client.aio.aclose()
        client.close()
        return answer

    assert asyncio.run(main(True)) == asyncio.run(main(False))
    key = make_idempotency_key("gcp.gemini", "a")
    assert recorded.event() == EVENT | {"idempotency_key": key}


async def closed(chunks) -> None:
    await anext(chunks)
    await chunks.aclose()


@aiohttp_warns
@pytest.mark.parametrize("make", [aiohttp_client, httpx_client])
@pytest.mark.parametrize("end", [cancel_amid, closed])
def test_an_asynchronous_stream_that_ends_early_is_partial(
    end, make, provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    async def main() -> None:
        client = instrument(make(provider_server), tenant_id="acme", tracker=tracker)
        wanted = {"model": f"{MODEL}-waits", "contents": "x"}
        chunks = await client.aio.models.generate_content_stream(**wanted)
        await end(chunks)
        await client.aio.aclose()
        client.close()

    asyncio.run(main())
    event = recorded.event()
    assert (event["tokens"], event["metadata"]) == (118, {"usage": "partial"})
