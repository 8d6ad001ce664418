"""Clients of anthropic, with the real library."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import pytest
from pydantic import BaseModel, ValidationError

from tests.support.instrumented import KINDS, Recorded, cancel_amid
from tests.support.libraries import anthropic
from tests.support.provider_server import ProviderServer
from token_tracking import UsageTracker, instrument, make_idempotency_key

MODEL = "claude-one"  # a real name ends: the library warns of it
EVENT = KINDS | {
    "tenant_id": "acme",
    "token_type": "llm",
    "operation": "query",
    "metadata": {},
    "provider": "anthropic",
    "model": MODEL,
    "service_tier": "priority",
    "cache_read_tokens": 60,
    "cache_write_tokens": 10,
    "cache_write_long_tokens": 7,
}


def asked(prompt: str, model: str = MODEL, **more: object) -> dict:
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "max_tokens": 99, "messages": messages, **more}


def seen(items: Iterable) -> list:
    return [(type(item), item.to_dict()) for item in items]


def helper(client: anthropic.Anthropic, prompt: str) -> list:
    with client.messages.stream(**asked(prompt)) as stream:
        events = [event.type for event in stream]
        return [*events, stream.get_final_message().to_dict()]


def texts(client: anthropic.Anthropic, prompt: str) -> list:
    with client.messages.stream(**asked(prompt)) as stream:
        return list(stream.text_stream)


def lines(client: anthropic.Anthropic, prompt: str) -> list:
    with client.messages.with_streaming_response.create(**asked(prompt, stream=True)) as response:
        return list(response.iter_lines())


CALLS: dict[str, Callable[[anthropic.Anthropic, str], list]] = {
    "create": lambda client, prompt: seen([client.messages.create(**asked(prompt))]),
    "stream": lambda client, prompt: seen(client.messages.create(**asked(prompt, stream=True))),
    "helper": helper,
    "texts": texts,
    "lines": lines,
    "beta": lambda client, prompt: seen([client.beta.messages.create(**asked(prompt))]),
    "beta stream": lambda client, prompt: seen(
        client.beta.messages.create(**asked(prompt, stream=True))
    ),
    "raw": lambda client, prompt: seen(
        [client.messages.with_raw_response.create(**asked(prompt)).parse()]
    ),
    "copy": lambda client, prompt: seen(
        [client.with_options(max_retries=1).messages.create(**asked(prompt))]
    ),
}


@pytest.fixture
def plain(provider_server: ProviderServer):
    with anthropic.Anthropic(base_url=provider_server.url, api_key="-") as client:
        yield client


@pytest.fixture
def client(provider_server: ProviderServer, tracker: UsageTracker):
    with anthropic.Anthropic(base_url=provider_server.url, api_key="-") as client:
        yield instrument(client, tenant_id="acme", tracker=tracker)


@pytest.mark.parametrize("name", CALLS)
def test_a_message_is_recorded_and_looks_the_same(
    name: str, client: anthropic.Anthropic, plain: anthropic.Anthropic, recorded: Recorded
):
    call = CALLS[name]
    assert call(client, name) == call(plain, name)
    assert recorded.event() == EVENT | {
        "idempotency_key": make_idempotency_key("anthropic", f"msg_{name}")
    }
    assert recorded.tracker.stats().cut_streams == 0


class Number(BaseModel):
    number: int


def test_an_answer_that_cannot_be_parsed_is_recorded(
    client: anthropic.Anthropic, recorded: Recorded
):
    with pytest.raises(ValidationError, match="Invalid JSON"):
        client.messages.parse(**asked("f"), output_format=Number)
    assert recorded.event()["tokens"] == 130


@pytest.mark.parametrize("stream", [False, True])
def test_vertex(
    stream: bool, provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    with anthropic.AnthropicVertex(
        base_url=provider_server.url, region="europe-west1", project_id="p", access_token="-"
    ) as client:
        instrument(client, tenant_id="acme", tracker=tracker)
        answer = client.messages.create(**asked("v", stream=stream))
        if stream:
            list(answer)
    assert recorded.event() == EVENT | {
        "provider": "gcp.vertex_ai",
        "idempotency_key": make_idempotency_key("gcp.vertex_ai", "msg_v"),
    }


def test_counting_tokens_is_no_usage(client: anthropic.Anthropic, recorded: Recorded):
    messages = [{"role": "user", "content": "count"}]
    assert client.messages.count_tokens(model=MODEL, messages=messages).input_tokens == 5
    assert recorded.events() == []


def test_an_error_of_the_provider_is_no_event(client: anthropic.Anthropic, recorded: Recorded):
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**asked("no", "claude-fails"))
    assert recorded.events() == []


@pytest.mark.parametrize("model", [MODEL, f"{MODEL}-cut"])
def test_a_stream_that_ends_early_tells_its_input(
    model: str, client: anthropic.Anthropic, recorded: Recorded
):
    stream = client.messages.create(**asked("early", model, stream=True))
    if "cut" in model:
        with pytest.raises(Exception, match="peer closed connection"):
            list(stream)
    else:
        next(stream)
        stream.close()
    assert recorded.event() == EVENT | {
        "model": model,
        "tokens": 101,
        "output_tokens": 1,
        "metadata": {"usage": "partial"},
        "idempotency_key": make_idempotency_key("anthropic", "msg_early"),
    }
    assert recorded.tracker.stats().cut_streams == 1


async def create(client: anthropic.AsyncAnthropic) -> list:
    return seen([await client.messages.create(**asked("a"))])


async def stream(client: anthropic.AsyncAnthropic) -> list:
    events = await client.messages.create(**asked("a", stream=True))
    return seen([event async for event in events])


async def async_helper(client: anthropic.AsyncAnthropic) -> list:
    async with client.messages.stream(**asked("a")) as events:
        texts = [text async for text in events.text_stream]
        return [*texts, (await events.get_final_message()).to_dict()]


@pytest.mark.parametrize("work", [create, stream, async_helper])
def test_an_asynchronous_message_is_recorded_and_looks_the_same(
    work, provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    async def main(is_instrumented: bool) -> list:
        async with anthropic.AsyncAnthropic(base_url=provider_server.url, api_key="-") as client:
            if is_instrumented:
                instrument(client, tenant_id="acme", tracker=tracker)
            return await work(client)

    assert asyncio.run(main(True)) == asyncio.run(main(False))
    key = make_idempotency_key("anthropic", "msg_a")
    assert recorded.event() == EVENT | {"idempotency_key": key}
    assert recorded.tracker.stats().cut_streams == 0


def test_a_cancelled_stream_is_partial(
    provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    async def main() -> None:
        async with anthropic.AsyncAnthropic(base_url=provider_server.url, api_key="-") as client:
            instrument(client, tenant_id="acme", tracker=tracker)
            asking = asked("x", f"{MODEL}-waits", stream=True)
            await cancel_amid(await client.messages.create(**asking))

    asyncio.run(main())
    event = recorded.event()
    assert (event["tokens"], event["metadata"]) == (101, {"usage": "partial"})
    assert recorded.tracker.stats().cut_streams == 1
