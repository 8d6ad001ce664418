"""Clients of mistralai, with the real library."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.instrumented import KINDS, Recorded
from tests.support.libraries import mistralai
from tests.support.provider_server import ProviderServer
from token_tracking import (
    UsageTracker,
    instrument,
    make_idempotency_key,
    uninstrument,
    usage_context,
)

MODEL = "mistral-small"
EVENT = KINDS | {
    "tenant_id": "acme",
    "token_type": "llm",
    "operation": "query",
    "metadata": {},
    "provider": "mistral_ai",
    "model": f"{MODEL}-2024-08-06",
    "service_tier": "priority",
    "cache_read_tokens": 60,
    "cache_write_tokens": 10,
    "reasoning_tokens": 12,
}


def client_of(server: ProviderServer) -> mistralai.Mistral:
    return mistralai.Mistral(api_key="-", server_url=server.url)


def asked(prompt: str, model: str = MODEL) -> dict:
    return {"model": model, "messages": [{"role": "user", "content": prompt}]}


def seen(items) -> list:
    return [(type(item), item.model_dump()) for item in items]


def whole(client: mistralai.Mistral, prompt: str) -> list:
    return seen([client.chat.complete(**asked(prompt))])


def streamed(client: mistralai.Mistral, prompt: str) -> list:
    with client.chat.stream(**asked(prompt)) as stream:
        return seen(list(stream))


@pytest.fixture
def client(provider_server: ProviderServer, tracker: UsageTracker):
    with client_of(provider_server) as client:
        yield instrument(client, tenant_id="acme", tracker=tracker)


@pytest.mark.parametrize("call", [whole, streamed])
def test_a_completion_is_recorded_and_looks_the_same(
    call, client: mistralai.Mistral, provider_server: ProviderServer, recorded: Recorded
):
    with client_of(provider_server) as plain:
        assert call(client, "m") == call(plain, "m")
    key = make_idempotency_key("mistral_ai", "chatcmpl-m")
    assert recorded.event() == EVENT | {"idempotency_key": key}
    assert recorded.tracker.stats().cut_streams == 0


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_stream_that_ends_early_is_partial(
    is_cut: bool, client: mistralai.Mistral, recorded: Recorded
):
    with client.chat.stream(**asked("early", f"{MODEL}-cut" if is_cut else MODEL)) as stream:
        if is_cut:
            with pytest.raises(Exception, match="peer closed connection"):
                list(stream)
        else:
            next(stream)
    event = recorded.event()
    assert (event["tokens"], event["metadata"]) == (0, {"usage": "partial"})
    assert recorded.tracker.stats().cut_streams == 1


def test_an_error_of_the_provider_is_no_event(client: mistralai.Mistral, recorded: Recorded):
    with pytest.raises(Exception, match="as asked"):
        client.chat.complete(**asked("no", f"{MODEL}-fails"))
    assert recorded.events() == []


def test_asynchronous_calls(
    provider_server: ProviderServer, tracker: UsageTracker, recorded: Recorded
):
    async def main() -> None:
        async with client_of(provider_server) as client:
            instrument(client, tenant_id="nobody", tracker=tracker)
            with usage_context(tenant_id="acme"):
                await client.chat.complete_async(**asked("1"))
                begun = await client.chat.stream_async(**asked("2"))
            async with begun as stream:
                assert len([event async for event in stream]) == 5

    asyncio.run(main())
    keys = {make_idempotency_key("mistral_ai", f"chatcmpl-{prompt}") for prompt in "12"}
    events = recorded.events()
    assert {event.pop("idempotency_key") for event in events} == keys
    assert events == [EVENT, EVENT]


def conversation(client: mistralai.Mistral) -> list:
    return seen([client.beta.conversations.start(inputs="c", model=MODEL)])


def conversation_stream(client: mistralai.Mistral) -> list:
    with client.beta.conversations.start_stream(inputs="c", model=MODEL) as stream:
        return [event.data.type for event in stream]


@pytest.mark.parametrize("call", [conversation, conversation_stream])
def test_conversations(
    call, client: mistralai.Mistral, provider_server: ProviderServer, recorded: Recorded
):
    with client_of(provider_server) as plain:
        assert call(client) == call(plain)
    event = recorded.event()
    assert event.pop("idempotency_key")
    common = {name: EVENT[name] for name in ("tenant_id", "token_type", "operation", "metadata")}
    assert event == common | KINDS | {"provider": "mistral_ai", "model": MODEL}
    assert recorded.tracker.stats().cut_streams == 0


def test_looking_at_a_conversation_is_no_call(
    client: mistralai.Mistral, recorded: Recorded, caplog: pytest.LogCaptureFixture
):
    assert client.beta.conversations.get(conversation_id="conv_1").id == "conv_1"
    assert recorded.events() == []
    assert [one for one in caplog.records if one.name.startswith("token_tracking")] == []


def test_embeddings(client: mistralai.Mistral, recorded: Recorded):
    client.embeddings.create(model="mistral-embed", inputs=["e"])
    event = recorded.event()
    assert (event["token_type"], event["tokens"]) == ("embedding", 8)


def test_it_is_undone_and_can_be_done_again(
    client: mistralai.Mistral, tracker: UsageTracker, recorded: Recorded
):
    uninstrument(client)
    whole(client, "undone")
    instrument(client, tenant_id="again", tracker=tracker)
    whole(client, "again")
    assert recorded.event()["tenant_id"] == "again"


def test_no_hook_is_left(provider_server: ProviderServer):
    with client_of(provider_server) as client:
        hooks = vars(client.sdk_configuration)["_hooks"].after_success_hooks
        before = list(hooks)
        uninstrument(instrument(client, tenant_id="acme"))
        assert hooks == before
