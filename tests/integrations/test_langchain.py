"""Runs of chat models and LLMs, with the real langchain-core and a model on openai's client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    Generation,
    LLMResult,
)
from langchain_core.runnables import RunnableLambda
from openai import OpenAI
from pydantic import Field

from tests.support.databases import Database
from tests.support.instrumented import EVENT, Recorded
from tests.support.provider_server import OPENAI_USAGE, ProviderServer
from token_tracking import UsageTracker, instrument, make_idempotency_key, usage_context
from token_tracking.integrations.langchain import TokenTrackingCallbackHandler

USAGE = {
    "input_tokens": 100,
    "output_tokens": 30,
    "total_tokens": 130,
    "input_token_details": {"cache_read": 60, "cache_creation": 10},
    "output_token_details": {"reasoning": 12},
}


class ChatModel(BaseChatModel):
    """A chat model as the packages for providers make them."""

    client: Any
    name_of_model: str = "gpt-4o"
    candidates: int = 1
    tells: bool = True  # usage_metadata
    identifies: bool = True  # the response's id

    @property
    def _llm_type(self) -> str:
        return "test"

    def _get_ls_params(self, stop: object = None, **kwargs: object) -> Any:
        return {"ls_provider": "openai", "ls_model_name": self.name_of_model}

    def _about(self, response: Any) -> dict[str, Any]:
        about = {
            "model_provider": "openai",
            "model_name": response.model,
            "service_tier": response.service_tier,
        }
        return about | ({"id": response.id} if self.identifies else {})

    def _asked(self, messages: list[BaseMessage]) -> dict[str, Any]:
        prompt = {"role": "user", "content": messages[-1].content}
        return {"model": self.name_of_model, "messages": [prompt]}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: object,
    ) -> ChatResult:
        response = self.client.chat.completions.create(**self._asked(messages))
        generations = [
            ChatGeneration(
                message=AIMessage(
                    response.choices[0].message.content,
                    response_metadata=self._about(response),
                    usage_metadata=USAGE if self.tells and response.usage else None,
                )
            )
            for _ in range(self.candidates)
        ]
        told = None if response.usage is None else response.usage.to_dict()
        output = {"token_usage": told, "model_name": response.model}
        return ChatResult(generations=generations, llm_output=output)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: object,
    ) -> Iterator[ChatGenerationChunk]:
        options = {"include_usage": True}
        for number, chunk in enumerate(
            self.client.chat.completions.create(
                **self._asked(messages), stream=True, stream_options=options
            )
        ):
            text = chunk.choices[0].delta.content if chunk.choices else ""
            yield ChatGenerationChunk(
                message=AIMessageChunk(
                    text or "",
                    response_metadata=self._about(chunk) if number == 0 else {},
                    usage_metadata=USAGE if chunk.usage else None,
                )
            )


class Completions(BaseLLM):
    """An LLM that sends several prompts in one request, whose usage is that of all."""

    requests: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "test"

    def _get_ls_params(self, stop: object = None, **kwargs: object) -> Any:
        return {"ls_provider": "openai", "ls_model_name": "gpt-3.5-turbo-instruct"}

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: object,
    ) -> LLMResult:
        self.requests.append(prompts)
        output = {"model_name": "gpt-3.5-turbo-instruct", "token_usage": OPENAI_USAGE}
        return LLMResult(generations=[[Generation(text="yes")] for _ in prompts], llm_output=output)


@pytest.fixture
def client(provider_server: ProviderServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{provider_server.url}/v1", api_key="-", max_retries=0) as made:
        yield made


@pytest.fixture
def model(client: OpenAI) -> ChatModel:
    return ChatModel(client=client)


@pytest.fixture
def handler(tracker: UsageTracker) -> TokenTrackingCallbackHandler:
    return TokenTrackingCallbackHandler(tenant_id="acme", tracker=tracker)


def key(prompt: str) -> dict[str, str]:
    return {"idempotency_key": make_idempotency_key("openai", f"chatcmpl-{prompt}")}


async def collected(stream: Any) -> list[str]:
    return [chunk.content async for chunk in stream]


CALLS = {
    "invoke": lambda model, config: model.invoke("invoke", config).content,
    "ainvoke": lambda model, config: asyncio.run(model.ainvoke("ainvoke", config)).content,
    "stream": lambda model, config: "".join(
        chunk.content for chunk in model.stream("stream", config)
    ),
    "astream": lambda model, config: "".join(
        asyncio.run(collected(model.astream("astream", config)))
    ),
    "in a chain": lambda model, config: (
        (RunnableLambda(lambda text: text) | model).invoke("in a chain", config).content
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_run_is_recorded(
    name: str, model: ChatModel, handler: TokenTrackingCallbackHandler, recorded: Recorded
):
    assert CALLS[name](model, {"callbacks": [handler]}) == "Hello world!"
    assert recorded.event() == EVENT | key(name)
    assert handler._open == {}


@pytest.mark.parametrize("is_async", [False, True])
def test_each_of_a_batch_is_recorded(
    is_async: bool, model: ChatModel, handler: TokenTrackingCallbackHandler, recorded: Recorded
):
    prompts, config = ["b1", "b2", "b3"], {"callbacks": [handler]}
    if is_async:
        asyncio.run(model.abatch(prompts, config))
    else:
        model.batch(prompts, config)
    events = recorded.events()
    assert sorted(event["idempotency_key"] for event in events) == sorted(
        key(prompt)["idempotency_key"] for prompt in prompts
    )
    assert [event["tokens"] for event in events] == [130] * 3


def test_messages_that_are_generated_together_are_runs(
    model: ChatModel, handler: TokenTrackingCallbackHandler, recorded: Recorded
):
    messages: list[list[BaseMessage]] = [[AIMessage("g1")], [AIMessage("g2")]]
    model.generate(messages, callbacks=[handler])
    assert len(recorded.events()) == 2


@pytest.mark.parametrize("identifies", [True, False])
def test_candidates_of_one_response_repeat_its_usage(
    identifies: bool, client: OpenAI, handler: TokenTrackingCallbackHandler, recorded: Recorded
):
    model = ChatModel(client=client, candidates=3, identifies=identifies)
    model.invoke("n", {"callbacks": [handler]})
    event = recorded.event()
    assert event["tokens"] == 130
    if identifies:
        assert event == EVENT | key("n")
    stats = recorded.tracker.stats()
    assert (stats.recorded, stats.duplicate) == (1, 0)


def test_all_generations_of_a_result_count(
    handler: TokenTrackingCallbackHandler, recorded: Recorded
):
    """Where one run answers several prompts, each with a usage of its own."""

    def answer(tokens: int) -> ChatGeneration:
        usage = {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}
        return ChatGeneration(message=AIMessage("yes", usage_metadata=usage))

    result = LLMResult(generations=[[answer(5)], [answer(7), answer(9)], [answer(5)]])
    handler.on_llm_end(result, run_id=uuid4())
    assert [event["tokens"] for event in recorded.events()] == [5, 5, 7, 9]


def test_the_run_is_the_key_if_the_response_has_no_id(
    client: OpenAI, handler: TokenTrackingCallbackHandler, tracker: UsageTracker, recorded: Recorded
):
    """LangChain makes the message's id of the run's, so tracking the message is the same event."""
    model = ChatModel(client=client, identifies=False)
    message = model.invoke("same", {"callbacks": [handler, handler]})
    tracker.track_response_sync(message, tenant_id="acme")
    model.invoke("same", {"callbacks": [handler]})
    assert len(recorded.events()) == 2
    stats = tracker.stats()
    assert (stats.recorded, stats.duplicate, stats.conflict) == (2, 2, 0)


def test_an_instrumented_client_below_is_the_same_event(
    client: OpenAI, handler: TokenTrackingCallbackHandler, tracker: UsageTracker, recorded: Recorded
):
    model = ChatModel(client=instrument(client, tenant_id="acme", tracker=tracker))
    model.invoke("plain", {"callbacks": [handler]})
    list(model.stream("stream", {"callbacks": [handler]}))
    events = {event["idempotency_key"]: event for event in recorded.events()}
    expected = [EVENT | key(name) for name in ("plain", "stream")]
    assert events == {event["idempotency_key"]: event for event in expected}
    stats = tracker.stats()
    assert (stats.recorded, stats.duplicate, stats.conflict) == (2, 2, 0)


def test_whose_run_it_is(model: ChatModel, tracker: UsageTracker, recorded: Recorded):
    """Metadata come before the context in which the run began, that before the handler's ids."""
    handler = TokenTrackingCallbackHandler(
        tenant_id="given", collection_id="given", operation="chat", tracker=tracker
    )
    config = {
        "callbacks": [handler],
        "metadata": {"agent_id": "a-1", "thread_id": "t-1", "operation": "extraction"},
    }
    with usage_context(tenant_id="acme", agent_id="context"):
        stream = model.stream("ids", config)
        next(stream)
    with usage_context(tenant_id="other"):
        list(stream)
    assert recorded.event() == EVENT | key("ids") | {
        "agent_id": "a-1",
        "conversation_id": "t-1",
        "collection_id": "given",
        "operation": "extraction",
    }


def test_a_run_of_nobody_is_counted_and_kept(
    model: ChatModel, emptied: Database, recorded: Recorded
):
    handler = TokenTrackingCallbackHandler(tracker=recorded.tracker)
    model.invoke("nobody", {"callbacks": [handler]})
    assert recorded.events() == []
    stats = recorded.tracker.stats()
    assert (stats.without_tenant, stats.rejected) == (1, 1)
    [(payload,)] = emptied.rows("select payload from token_tracking_raw.usage_event_rejections")
    assert payload["tokens"] == 130


def test_what_failed_is_not_usage(
    client: OpenAI, handler: TokenTrackingCallbackHandler, recorded: Recorded
):
    model = ChatModel(client=client, name_of_model="gpt-4o-fails")
    for call in (model.invoke, lambda *given: list(model.stream(*given))):
        with pytest.raises(Exception, match="as asked"):
            call("f", {"callbacks": [handler]})
    assert recorded.events() == []
    assert recorded.tracker.stats().cut_streams == 0
    assert handler._open == {}


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_that_is_cut_is_partial(
    is_async: bool, client: OpenAI, handler: TokenTrackingCallbackHandler, recorded: Recorded
):
    model = ChatModel(client=client, name_of_model="gpt-4o-cut")
    config = {"callbacks": [handler]}

    def read() -> object:
        if is_async:
            return asyncio.run(collected(model.astream("cut", config)))
        return list(model.stream("cut", config))

    with pytest.raises(Exception, match=r"Connection|peer|incomplete"):
        read()
    event = recorded.event()
    assert (event["tokens"], event["metadata"]) == (0, {"usage": "partial"})
    assert event["provider"] == "openai"
    assert recorded.tracker.stats().cut_streams == 1


def test_a_stream_that_is_closed_early_is_partial(
    model: ChatModel, handler: TokenTrackingCallbackHandler, recorded: Recorded
):
    stream = model.stream("closed", {"callbacks": [handler]})
    next(stream)
    stream.close()
    assert recorded.event()["metadata"] == {"usage": "partial"}
    assert recorded.tracker.stats().cut_streams == 1


def test_what_a_cut_stream_has_told_counts(
    handler: TokenTrackingCallbackHandler, recorded: Recorded
):
    """Anthropic's begin with their input."""

    class Model(ChatModel):
        def _stream(self, messages: object, *args: object, **kwargs: object) -> Any:
            usage = {"input_tokens": 40, "output_tokens": 1, "total_tokens": 41}
            yield ChatGenerationChunk(message=AIMessageChunk("H", usage_metadata=usage))
            raise ConnectionError

    with pytest.raises(ConnectionError):
        list(Model(client=None).stream("cut", {"callbacks": [handler]}))
    event = recorded.event()
    assert (event["input_tokens"], event["output_tokens"]) == (40, 1)
    assert event["metadata"] == {"usage": "partial"}


def test_the_output_of_the_model_tells_it_if_no_message_does(
    client: OpenAI, handler: TokenTrackingCallbackHandler, recorded: Recorded
):
    ChatModel(client=client, tells=False).invoke("x", {"callbacks": [handler, handler]})
    event = recorded.event()
    assert event.pop("idempotency_key")
    assert event == {name: value for name, value in EVENT.items() if name != "service_tier"}


def test_prompts_that_share_a_request_count_once(
    handler: TokenTrackingCallbackHandler, recorded: Recorded
):
    model = Completions()
    with usage_context(agent_id="context"):
        model.batch(["a", "b", "c"], {"callbacks": [handler], "metadata": {"tenant_id": "zeta"}})
    assert len(model.requests) == 1
    event = recorded.event()
    assert (event["tokens"], event["model"]) == (130, "gpt-3.5-turbo-instruct")
    assert (event["tenant_id"], event["agent_id"]) == ("zeta", "context")
    stats = recorded.tracker.stats()
    assert (stats.recorded, stats.rejected, stats.without_usage) == (1, 0, 0)


def test_a_response_without_usage_is_counted(
    client: OpenAI, handler: TokenTrackingCallbackHandler, recorded: Recorded
):
    ChatModel(client=client, name_of_model="gpt-4o-silent").invoke("s", {"callbacks": [handler]})
    event = recorded.event()
    assert (event["tokens"], event["model"]) == (0, "gpt-4o-silent-2024-08-06")
    assert event["metadata"] == {"usage": "missing"}
    assert recorded.tracker.stats().without_usage == 1


def test_cache_hits_are_not_usage(
    client: OpenAI, handler: TokenTrackingCallbackHandler, recorded: Recorded
):
    model = ChatModel(client=client, cache=InMemoryCache())
    for tenant in ("acme", "zeta"):
        model.invoke("c", {"callbacks": [handler], "metadata": {"tenant_id": tenant}})
    silent = ChatModel(client=client, name_of_model="gpt-4o-silent", cache=InMemoryCache())
    for _ in range(2):
        silent.invoke("c2", {"callbacks": [handler], "metadata": {"tenant_id": "quiet"}})
    assert [event["tenant_id"] for event in recorded.events()] == ["acme", "quiet"]
    assert recorded.tracker.stats().without_usage == 1


def test_a_fault_stays_inside(
    model: ChatModel,
    handler: TokenTrackingCallbackHandler,
    recorded: Recorded,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("token_tracking.integrations.langchain._messages", broken)
    assert model.invoke("fault", {"callbacks": [handler]}).content == "Hello world!"
    assert recorded.events() == []
    assert "could not be tracked, RuntimeError" in caplog.text
    assert "a secret" not in caplog.text


def test_runs_that_never_end_do_not_fill_the_memory(
    model: ChatModel, handler: TokenTrackingCallbackHandler, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("token_tracking.integrations.langchain._MOST_OPEN", 3)
    streams = [model.stream("open", {"callbacks": [handler]}) for _ in range(5)]
    for stream in streams:
        next(stream)
    assert len(handler._open) == 3
    for stream in streams:
        stream.close()
