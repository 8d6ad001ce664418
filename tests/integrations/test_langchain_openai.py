"""The package that most services use with LangChain, whose chat streams do not tell their id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from httpx import AsyncClient, Client
from langchain_openai import ChatOpenAI

from tests.support.instrumented import KINDS, Recorded
from tests.support.provider_server import ProviderServer
from token_tracking import UsageTracker, instrument, make_idempotency_key
from token_tracking.integrations.langchain import TokenTrackingCallbackHandler

pytestmark = pytest.mark.xdist_group("providers")

Make = Callable[..., ChatOpenAI]


@pytest.fixture
def make(provider_server: ProviderServer, tracker: UsageTracker) -> Iterator[Make]:
    with Client() as client:

        def model(**given: Any) -> ChatOpenAI:
            handler = TokenTrackingCallbackHandler(tenant_id="acme", tracker=tracker)
            return ChatOpenAI(
                model="gpt-4o",
                base_url=f"{provider_server.url}/v1",
                api_key="-",
                max_retries=0,
                callbacks=[handler],
                # Its own ones are shared by all models, of all event loops.
                http_client=client,
                http_async_client=AsyncClient(),
                **given,
            )

        yield model


def invoked(model: ChatOpenAI) -> None:
    async def main() -> None:
        async with model.http_async_client:
            await model.ainvoke("x")

    asyncio.run(main())


def streamed(model: ChatOpenAI) -> None:
    async def main() -> None:
        async with model.http_async_client:
            async for _ in model.astream("x"):
                pass

    asyncio.run(main())


CALLS = {
    "invoke": (lambda model: model.invoke("x"), "chatcmpl-x"),
    "ainvoke": (invoked, "chatcmpl-x"),
    "responses": (lambda model: model.invoke("x"), "resp_x"),
    "stream of responses": (lambda model: list(model.stream("x")), "resp_x"),
    "astream of responses": (streamed, "resp_x"),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_instrumented_client_below_is_the_same_event(
    name: str, make: Make, tracker: UsageTracker, recorded: Recorded
):
    call, response_id = CALLS[name]
    model = make(use_responses_api="responses" in name)
    for client in (model.root_client, model.root_async_client):
        instrument(client, tenant_id="acme", tracker=tracker)
    call(model)
    event = recorded.event()
    assert event["idempotency_key"] == make_idempotency_key("openai", response_id)
    assert {name: event[name] for name in KINDS} == KINDS
    assert (event["model"], event["service_tier"]) == ("gpt-4o-2024-08-06", "priority")
    stats = tracker.stats()
    assert (stats.recorded, stats.duplicate, stats.conflict) == (1, 1, 0)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_chat_stream_counts_by_its_run(is_async: bool, make: Make, recorded: Recorded):
    """Its chunks have no id, so each run is an event: an instrumented client would be another."""
    for _ in range(2):
        model = make(stream_usage=True)
        if is_async:
            streamed(model)
        else:
            list(model.stream("x"))
    events = recorded.events()
    assert [event["tokens"] for event in events] == [130, 130]
    assert {event["model"] for event in events} == {"gpt-4o-2024-08-06"}


def test_a_chat_stream_of_another_server_is_not_asked_for_usage(make: Make, recorded: Recorded):
    list(make().stream("x"))
    event = recorded.event()
    assert (event["tokens"], event["metadata"]) == (0, {"usage": "missing"})
    assert recorded.tracker.stats().without_usage == 1
