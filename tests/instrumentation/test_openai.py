"""Clients of openai, with the real library."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterable

import pytest
from pydantic import BaseModel, ValidationError

from tests.support.instrumented import KINDS, Recorded, cancel_amid
from tests.support.libraries import openai
from tests.support.provider_server import WORDS, ProviderServer
from token_tracking import UsageTracker, instrument, make_idempotency_key, usage_context

CHAT = KINDS | {"cache_read_tokens": 60, "cache_write_tokens": 10, "reasoning_tokens": 12}
RESPONSES = KINDS | {"cache_read_tokens": 60, "reasoning_tokens": 12}
NAMES = {"provider": "openai", "model": "gpt-4o-2024-08-06", "service_tier": "priority"}
COMMON = {"tenant_id": "acme", "token_type": "llm", "operation": "query", "metadata": {}}


def asked(prompt: str, model: str = "gpt-4o", **more: object) -> dict:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **more}


def seen(items: Iterable) -> list:
    """Return each item with what was set in it: also a field that is set to null."""
    return [(type(item), item.to_dict() if hasattr(item, "to_dict") else item) for item in items]


def raw_bytes(client: openai.OpenAI, prompt: str) -> list:
    with client.chat.completions.with_streaming_response.create(
        **asked(prompt, stream=True)
    ) as response:
        return [b"".join(response.http_response.iter_raw())]


def bytes_of(client: openai.OpenAI, prompt: str, model: str = "gpt-4o") -> list:
    with client.chat.completions.with_streaming_response.create(
        **asked(prompt, model, stream=True)
    ) as response:
        # The library closes the response before it passes on the rest of less than this.
        return [b"".join(response.iter_bytes(1000))]


def lines_of(client: openai.OpenAI, prompt: str) -> list:
    with client.chat.completions.with_streaming_response.create(
        **asked(prompt, stream=True)
    ) as response:
        return list(response.iter_lines())


def parsed_stream_of_streaming_response(client: openai.OpenAI, prompt: str) -> list:
    with client.chat.completions.with_streaming_response.create(
        **asked(prompt, stream=True)
    ) as response:
        return seen(response.parse())


def whole_of_streaming_response(client: openai.OpenAI, prompt: str) -> list:
    with client.chat.completions.with_streaming_response.create(**asked(prompt)) as response:
        return [response.read(), *seen([response.parse()])]


def chat_helper(client: openai.OpenAI, prompt: str) -> list:
    with client.chat.completions.stream(**asked(prompt)) as stream:
        events = [(type(event), event.to_dict()) for event in stream]
        return [*events, stream.get_final_completion().to_dict()]


def responses_helper(client: openai.OpenAI, prompt: str) -> list:
    with client.responses.stream(model="gpt-4o", input=prompt) as stream:
        events = [(type(event), event.to_dict(warnings=False)) for event in stream]
        return [*events, stream.get_final_response().to_dict(warnings=False)]


CHAT_CALLS: dict[str, Callable[[openai.OpenAI, str], list]] = {
    "create": lambda client, prompt: seen([client.chat.completions.create(**asked(prompt))]),
    "parse": lambda client, prompt: seen([client.chat.completions.parse(**asked(prompt))]),
    "raw": lambda client, prompt: seen(
        [client.chat.completions.with_raw_response.create(**asked(prompt)).parse()]
    ),
    "raw, not parsed": lambda client, prompt: [
        client.chat.completions.with_raw_response.create(**asked(prompt)).http_response.content
    ],
    "whole of a streaming response": whole_of_streaming_response,
    "post": lambda client, prompt: [
        client.post("/chat/completions", cast_to=object, body=asked(prompt))
    ],
    "stream": lambda client, prompt: seen(
        client.chat.completions.create(**asked(prompt, stream=True))
    ),
    "stream that asks for usage": lambda client, prompt: seen(
        client.chat.completions.create(
            **asked(prompt, stream=True, stream_options={"include_usage": True})
        )
    ),
    "stream with another option": lambda client, prompt: seen(
        client.chat.completions.create(
            **asked(prompt, stream=True, stream_options={"include_obfuscation": False})
        )
    ),
    "raw stream": lambda client, prompt: seen(
        client.chat.completions.with_raw_response.create(**asked(prompt, stream=True)).parse()
    ),
    "raw bytes": raw_bytes,
    "bytes": bytes_of,
    "lines": lines_of,
    "stream of a filtered prompt": lambda client, prompt: seen(
        client.chat.completions.create(**asked(prompt, "gpt-4o-filtered", stream=True))
    ),
    "stream of several choices": lambda client, prompt: seen(
        client.chat.completions.create(**asked(prompt, stream=True, n=2))
    ),
    "body of one's own": lambda client, prompt: seen(
        client.chat.completions.create(
            **asked(prompt, stream=True, extra_body={"stream_options": {"include_usage": True}})
        )
    ),
    "a copy's copy": lambda client, prompt: seen(
        client.copy().with_options(timeout=9).chat.completions.create(**asked(prompt, stream=True))
    ),
    "parsed stream of a streaming response": parsed_stream_of_streaming_response,
    "stream helper": chat_helper,
    "copy": lambda client, prompt: seen(
        [client.with_options(timeout=9).copy().chat.completions.create(**asked(prompt))]
    ),
}
RESPONSES_CALLS: dict[str, Callable[[openai.OpenAI, str], list]] = {
    "create": lambda client, prompt: seen([client.responses.create(model="gpt-4o", input=prompt)]),
    "stream": lambda client, prompt: seen(
        client.responses.create(model="gpt-4o", input=prompt, stream=True)
    ),
    "stream helper": responses_helper,
}


@pytest.fixture
def plain(provider_server: ProviderServer):
    with openai.OpenAI(base_url=f"{provider_server.url}/v1", api_key="-") as client:
        yield client


@pytest.fixture
def client(provider_server: ProviderServer, tracker: UsageTracker):
    with openai.OpenAI(base_url=f"{provider_server.url}/v1", api_key="-") as client:
        yield instrument(client, tenant_id="acme", tracker=tracker)


@pytest.mark.parametrize("name", CHAT_CALLS)
def test_a_chat_is_recorded_and_looks_the_same(
    name: str, client: openai.OpenAI, plain: openai.OpenAI, recorded: Recorded
):
    call = CHAT_CALLS[name]
    assert call(client, name) == call(plain, name)
    key = make_idempotency_key("openai", f"chatcmpl-{name}")
    model = "gpt-4o-filtered-2024-08-06" if "filtered" in name else NAMES["model"]
    assert recorded.event() == COMMON | NAMES | CHAT | {"idempotency_key": key, "model": model}
    stats = recorded.tracker.stats()
    assert (stats.recorded, stats.cut_streams, stats.without_usage) == (1, 0, 0)


@pytest.mark.parametrize("name", RESPONSES_CALLS)
def test_a_response_is_recorded_and_looks_the_same(
    name: str, client: openai.OpenAI, plain: openai.OpenAI, recorded: Recorded
):
    call = RESPONSES_CALLS[name]
    assert call(client, name) == call(plain, name)
    key = make_idempotency_key("openai", f"resp_{name}")
    assert recorded.event() == COMMON | NAMES | RESPONSES | {"idempotency_key": key}


def test_embeddings(client: openai.OpenAI, plain: openai.OpenAI, recorded: Recorded):
    wanted = {"model": "text-embedding-3-small", "input": "e"}
    assert seen([client.embeddings.create(**wanted)]) == seen([plain.embeddings.create(**wanted)])
    event = recorded.event()
    assert event.pop("idempotency_key")
    assert event == COMMON | {
        "token_type": "embedding",
        "provider": "openai",
        "model": "text-embedding-3-small",
        "tokens": 8,
        "input_tokens": 8,
        "output_tokens": 0,
    }


@pytest.mark.parametrize(
    "more", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}]
)
def test_azure(
    more: dict, provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    azure = openai.AzureOpenAI(
        azure_endpoint=provider_server.url, api_key="-", api_version="2024-10-21"
    )
    with instrument(azure, tenant_id="acme", tracker=tracker):
        answer = azure.chat.completions.create(**asked("azure", **more))
        if more:
            assert len(list(answer)) == (6 if "stream_options" in more else 5)
    key = make_idempotency_key("azure.ai.openai", "chatcmpl-azure")
    names = NAMES | {"provider": "azure.ai.openai", "idempotency_key": key}
    assert recorded.event() == COMMON | names | CHAT


def test_a_compressed_stream(client: openai.OpenAI, plain: openai.OpenAI, recorded: Recorded):
    model = "gpt-4o-zipped"
    assert bytes_of(client, "z", model) == bytes_of(plain, "z", model)
    assert recorded.event() | KINDS == recorded.event()


def test_a_caller_that_wants_no_usage_gets_none(
    client: openai.OpenAI, provider_server: ProviderServer, recorded: Recorded
):
    wanted = asked("no", stream=True, stream_options={"include_usage": False})
    assert len(list(client.chat.completions.create(**wanted))) == 5
    assert provider_server.requests[0][1]["stream_options"] == {"include_usage": False}
    event = recorded.event()
    assert (event["tokens"], event["metadata"]) == (0, {"usage": "missing"})


class Number(BaseModel):
    number: int


FAILING: dict[str, Callable[[openai.OpenAI], object]] = {
    "chat": lambda client: client.chat.completions.parse(**asked("f"), response_format=Number),
    "raw chat": lambda client: client.chat.completions.with_raw_response.parse(
        **asked("f"), response_format=Number
    ).parse(),
    "responses": lambda client: client.responses.parse(
        model="gpt-4o", input="f", text_format=Number
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_an_answer_that_cannot_be_parsed_is_recorded(
    name: str, client: openai.OpenAI, recorded: Recorded
):
    """The caller gets only the error, but has to pay."""
    with pytest.raises(ValidationError, match="Invalid JSON"):
        FAILING[name](client)
    assert recorded.event()["tokens"] == 130
    assert recorded.tracker.stats().duplicate == 0


def test_deleting_a_response_is_no_call(client: openai.OpenAI, recorded: Recorded):
    assert client.responses.delete("resp_d") is None
    assert recorded.events() == []


def test_a_server_of_ones_own_has_the_given_provider(
    provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    with openai.OpenAI(base_url=f"{provider_server.url}/v1", api_key="-") as client:
        instrument(client, tenant_id="acme", tracker=tracker, provider="vllm")
        client.chat.completions.create(**asked("own"))
    assert recorded.event()["provider"] == "vllm"


def test_what_is_made_in_the_background_is_recorded_when_it_is_done(
    client: openai.OpenAI, recorded: Recorded
):
    begun = client.responses.create(model="gpt-4o", input="later", background=True)
    assert begun.status == "queued"
    for _ in range(2):
        assert client.responses.retrieve(begun.id).status == "completed"
    key = make_idempotency_key("openai", "resp_later")
    assert recorded.event() == COMMON | NAMES | RESPONSES | {"idempotency_key": key}
    stats = recorded.tracker.stats()
    assert (stats.recorded, stats.duplicate, stats.without_usage) == (1, 1, 0)


def test_a_response_that_was_recorded_is_not_when_it_is_retrieved(
    client: openai.OpenAI, recorded: Recorded
):
    assert client.responses.retrieve("resp_usual").status == "completed"
    assert list(client.responses.input_items.list("resp_usual")) == []
    assert recorded.events() == []


def test_a_response_that_fails_is_no_event(client: openai.OpenAI, recorded: Recorded):
    stream = client.responses.create(model="gpt-4o-refused", input="f", stream=True)
    assert [event.type for event in stream][-1] == "response.failed"
    assert recorded.events() == []
    assert recorded.tracker.stats().cut_streams == 0


def test_another_option_of_the_stream_is_kept(
    client: openai.OpenAI, provider_server: ProviderServer
):
    wanted = asked("o", stream=True, stream_options={"include_obfuscation": False})
    client.chat.completions.create(**wanted).close()
    [(_, body)] = provider_server.requests
    assert body["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert wanted["stream_options"] == {"include_obfuscation": False}


def test_chunks_come_as_soon_as_the_server_sends_them(
    client: openai.OpenAI, provider_server: ProviderServer, recorded: Recorded
):
    stream = client.chat.completions.create(**asked("w", "gpt-4o-waits", stream=True))
    first = [next(stream).choices[0].delta.content for _ in range(3)]
    assert first == ["", *WORDS[:2]]
    provider_server.go_on.set()
    assert len(list(stream)) == 2
    assert recorded.event()["tokens"] == 130


def test_retries_of_the_library_are_one_response(
    client: openai.OpenAI, provider_server: ProviderServer, recorded: Recorded
):
    client.with_options(max_retries=2).chat.completions.create(**asked("retry", "gpt-4o-flaky"))
    assert provider_server.attempts["retry"] == 2
    assert recorded.event()["tokens"] == 130


def test_an_error_of_the_provider_is_no_event(
    client: openai.OpenAI, provider_server: ProviderServer, recorded: Recorded
):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="as asked"):
            client.chat.completions.create(**asked("no", "gpt-4o-fails", stream=stream))
    assert provider_server.attempts["no"] == 2
    assert recorded.events() == []


@pytest.mark.parametrize("stream_usage", [True, False])
def test_a_server_that_rejects_the_option(
    stream_usage: bool,
    plain: openai.OpenAI,
    provider_server: ProviderServer,
    tracker: UsageTracker,
    recorded: Recorded,
):
    """The caller never gets an error that only our option brings about."""
    wanted = asked("strict", "gpt-4o-strict", stream=True)
    with openai.OpenAI(base_url=f"{provider_server.url}/v1", api_key="-") as client:
        instrument(client, tenant_id="acme", tracker=tracker, stream_usage=stream_usage)
        got = seen(client.chat.completions.create(**wanted))
        sent = ["stream_options" in body for _, body in provider_server.requests]
        assert sent == ([True, False] if stream_usage else [False])
        assert got == seen(plain.chat.completions.create(**wanted))
        with pytest.raises(openai.BadRequestError, match="unknown field"):
            client.chat.completions.create(**wanted, stream_options={"include_usage": True})
        assert len(provider_server.requests) == len(sent) + 2
    event = recorded.event()
    assert (event["tokens"], event["metadata"]) == (0, {"usage": "missing"})
    assert recorded.tracker.stats().without_usage == 1


async def async_strict(client: openai.AsyncOpenAI) -> list:
    wanted = asked("a", "gpt-4o-strict", stream=True)
    return seen([chunk async for chunk in await client.chat.completions.create(**wanted)])


def test_a_server_that_rejects_the_option_of_an_asynchronous_client(
    provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    got = run_async(provider_server, tracker, async_strict)
    assert got == run_async(provider_server, None, async_strict)
    assert recorded.event()["metadata"] == {"usage": "missing"}


def test_a_response_without_usage_is_counted(
    client: openai.OpenAI, recorded: Recorded, caplog: pytest.LogCaptureFixture
):
    client.chat.completions.create(**asked("silent", "gpt-4o-silent"))
    event = recorded.event()
    assert (event["tokens"], event["model"]) == (0, "gpt-4o-silent-2024-08-06")
    assert (event["metadata"], event["provider"]) == ({"usage": "missing"}, "openai")
    assert recorded.tracker.stats().without_usage == 1


# How streams end early.


def closed(stream) -> None:
    next(stream)
    stream.close()


def left(stream) -> None:
    with stream:
        for _ in stream:
            break


def dropped(stream) -> None:
    next(stream)
    del stream
    gc.collect()


def never_read(stream) -> None:
    del stream
    gc.collect()


@pytest.mark.parametrize("end", [closed, left, dropped, never_read])
def test_a_stream_that_ends_early_is_partial(
    end: Callable[[object], None], client: openai.OpenAI, recorded: Recorded
):
    end(client.chat.completions.create(**asked("early", "gpt-4o", stream=True)))
    event = recorded.event()
    assert (event["tokens"], event["metadata"]) == (0, {"usage": "partial"})
    if end is never_read:
        assert event["model"] == "gpt-4o"  # as asked for
    else:
        assert event["model"] == NAMES["model"]
        whole = make_idempotency_key("openai", "chatcmpl-early")
        assert event["idempotency_key"] == make_idempotency_key(whole, "partial")
    assert recorded.tracker.stats().cut_streams == 1


@pytest.mark.parametrize("name", ["gpt-4o-cut", "gpt-4o-cut-running"])
def test_a_stream_that_is_cut_is_recorded_with_what_is_known(
    name: str, client: openai.OpenAI, plain: openai.OpenAI, recorded: Recorded
):
    def read(one: openai.OpenAI) -> list:
        got: list = []
        with pytest.raises(openai.APIConnectionError) as error:
            got.extend(seen(one.chat.completions.create(**asked("cut", name, stream=True))))
        return [type(error.value), *got]

    assert read(client) == read(plain)
    event = recorded.event()
    assert event["tokens"] == (102 if "running" in name else 0)
    assert event["metadata"] == {"usage": "partial"}
    assert recorded.tracker.stats().cut_streams == 1


def test_a_stream_that_is_closed_after_its_usage_is_whole(
    client: openai.OpenAI, recorded: Recorded
):
    stream = client.chat.completions.create(
        **asked("u", stream=True, stream_options={"include_usage": True})
    )
    for chunk in stream:
        if chunk.usage is not None:
            break
    stream.close()
    assert recorded.event() | COMMON == recorded.event()
    assert recorded.tracker.stats().cut_streams == 0


def test_the_usage_of_a_cut_response_can_be_recorded_later(
    client: openai.OpenAI, tracker: UsageTracker, recorded: Recorded
):
    stream = client.responses.create(model="gpt-4o", input="r", stream=True)
    next(stream)
    stream.close()
    assert tracker.track_response_sync(client.responses.retrieve("resp_r"), tenant_id="acme")
    assert [event["tokens"] for event in recorded.events()] == [0, 130]
    assert tracker.stats().conflict == 0


# The asynchronous client.


def run_async(provider_server: ProviderServer, tracker: UsageTracker | None, work) -> object:
    async def main() -> object:
        async with openai.AsyncOpenAI(base_url=f"{provider_server.url}/v1", api_key="-") as client:
            if tracker is not None:
                instrument(client, tenant_id="acme", tracker=tracker)
            return await work(client)

    return asyncio.run(main())


async def async_create(client: openai.AsyncOpenAI) -> list:
    return seen([await client.chat.completions.create(**asked("a"))])


async def async_stream(client: openai.AsyncOpenAI) -> list:
    stream = await client.chat.completions.create(**asked("a", stream=True))
    return seen([chunk async for chunk in stream])


async def async_lines(client: openai.AsyncOpenAI) -> list:
    async with client.chat.completions.with_streaming_response.create(
        **asked("a", stream=True)
    ) as response:
        return [line async for line in response.iter_lines()]


async def async_whole_of_streaming_response(client: openai.AsyncOpenAI) -> list:
    async with client.chat.completions.with_streaming_response.create(**asked("a")) as response:
        return [await response.read(), *seen([await response.parse()])]


async def async_helper(client: openai.AsyncOpenAI) -> list:
    async with client.chat.completions.stream(**asked("a")) as stream:
        return [event.type async for event in stream]


async def async_copy(client: openai.AsyncOpenAI) -> list:
    return await async_stream(client.with_options(timeout=9))


@pytest.mark.parametrize(
    "work",
    [
        async_create,
        async_stream,
        async_lines,
        async_whole_of_streaming_response,
        async_helper,
        async_copy,
    ],
)
def test_an_asynchronous_chat_is_recorded_and_looks_the_same(
    work, provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    assert run_async(provider_server, tracker, work) == run_async(provider_server, None, work)
    key = make_idempotency_key("openai", "chatcmpl-a")
    assert recorded.event() == COMMON | NAMES | CHAT | {"idempotency_key": key}
    assert recorded.tracker.stats().cut_streams == 0


async def cancelled(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(**asked("x", "gpt-4o-waits", stream=True))
    await cancel_amid(stream)


async def closed_async(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(**asked("x", stream=True))
    await anext(stream)
    await stream.close()


async def broken_off(client: openai.AsyncOpenAI) -> None:
    async for _ in await client.chat.completions.create(**asked("x", stream=True)):
        break


async def cut_async(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(**asked("x", "gpt-4o-cut", stream=True))
    with pytest.raises(openai.APIConnectionError):
        async for _ in stream:
            pass


async def never_read_async(client: openai.AsyncOpenAI) -> None:
    await client.chat.completions.create(**asked("x", stream=True))
    gc.collect()


@pytest.mark.parametrize("work", [cancelled, closed_async, broken_off, cut_async, never_read_async])
def test_an_asynchronous_stream_that_ends_early_is_partial(
    work, provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    run_async(provider_server, tracker, work)
    event = recorded.event()
    assert (event["tokens"], event["metadata"]) == (0, {"usage": "partial"})
    assert recorded.tracker.stats().cut_streams == 1


def test_concurrent_calls_are_their_tenants(
    provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    async def ask(client: openai.AsyncOpenAI, number: int) -> object:
        with usage_context(tenant_id=f"t{number:02}", agent_id=f"a{number:02}", operation="chat"):
            if number % 2:
                return await client.chat.completions.create(**asked(f"c{number}"))
            return await client.chat.completions.create(**asked(f"c{number}", stream=True))

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{provider_server.url}/v1", api_key="-") as client:
            instrument(client, tenant_id="nobody", conversation_id="v", tracker=tracker)
            answers = await asyncio.gather(*[ask(client, number) for number in range(20)])
            # The streams are read elsewhere: neither in the task nor in the block of their call.
            with usage_context(tenant_id="another", collection_id="c"):
                for stream in answers[::2]:
                    async for _ in stream:
                        pass

    asyncio.run(main())
    events = recorded.events()
    assert [event["tenant_id"] for event in events] == [f"t{n:02}" for n in range(20)]
    assert [event["agent_id"] for event in events] == [f"a{n:02}" for n in range(20)]
    keys = [make_idempotency_key("openai", f"chatcmpl-c{n}") for n in range(20)]
    assert [event["idempotency_key"] for event in events] == keys
    assert {event["conversation_id"] for event in events} == {"v"}
    assert {event["operation"] for event in events} == {"chat"}
    assert not any("collection_id" in event for event in events)


def test_asynchronous_azure(
    provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    async def main() -> None:
        azure = openai.AsyncAzureOpenAI(
            azure_endpoint=provider_server.url, api_key="-", api_version="2024-10-21"
        )
        async with instrument(azure, tenant_id="acme", tracker=tracker):
            await azure.chat.completions.create(**asked("azure"))

    asyncio.run(main())
    assert recorded.event()["provider"] == "azure.ai.openai"
