"""The same responses as objects of the providers' own libraries."""

from __future__ import annotations

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from tests.support.responses import (
    CHAT_USAGE,
    CLAUDE,
    FORMS,
    MESSAGE_USAGE,
    MISTRAL_USAGE,
    chat,
    chunk,
    message,
    used,
)
from token_tracking import UsageNotFoundError, usage_of

if TYPE_CHECKING:
    from collections.abc import Callable

# The libraries take seconds to import, so one worker does it.
pytestmark = [
    pytest.mark.xdist_group("providers"),
    # Of LiteLLM's own types, which pydantic builds when they are first used.
    pytest.mark.filterwarnings("ignore:Item '.*' on TypedDict class:UserWarning"),
]


def built(place: str) -> Callable[[dict[str, Any]], object]:
    """Return what makes an object of a library's class out of JSON."""
    module, name = place.rsplit(".", 1)
    made = getattr(import_module(module), name)
    if module.partition(".")[0] in {"anthropic", "groq", "openai"}:
        return lambda json: made.construct(**json)  # as their clients do: nothing is validated
    return getattr(made, "model_validate", None) or (lambda json: made(**json))


OBJECTS = [
    ("OpenAI chat", "openai.types.chat.ChatCompletion"),
    ("OpenAI chat, last chunk", "openai.types.chat.ChatCompletionChunk"),
    ("OpenAI responses", "openai.types.responses.Response"),
    ("OpenAI responses, last event", "openai.types.responses.ResponseIncompleteEvent"),
    ("OpenAI embeddings", "openai.types.CreateEmbeddingResponse"),
    ("Azure OpenAI", "openai.types.chat.ChatCompletion"),
    ("vLLM", "openai.types.chat.ChatCompletion"),
    ("DeepSeek", "openai.types.chat.ChatCompletion"),
    ("Groq", "openai.types.chat.ChatCompletion"),
    ("Groq", "groq.types.chat.ChatCompletion"),
    ("Groq, last chunk", "groq.types.chat.ChatCompletionChunk"),
    ("Anthropic", "anthropic.types.Message"),
    ("Anthropic, fast", "anthropic.types.beta.BetaMessage"),
    ("Anthropic on Bedrock", "anthropic.types.Message"),
    ("Gemini", "google.genai.types.GenerateContentResponse"),
    ("Vertex AI", "google.genai.types.GenerateContentResponse"),
    ("Cohere v2", "cohere.V2ChatResponse"),
    ("Cohere v2, last event", "cohere.MessageEndV2ChatStreamResponse"),
    ("Cohere v1", "cohere.NonStreamedChatResponse"),
    ("Cohere embeddings", "cohere.EmbedByTypeResponse"),
    ("OpenAI batch", "openai.types.Batch"),
    ("OpenAI transcription", "openai.types.audio.Transcription"),
    ("OpenAI images", "openai.types.ImagesResponse"),
    ("OpenAI realtime, last event", "openai.types.realtime.ResponseDoneEvent"),
    ("Gemini embeddings", "google.genai.types.EmbedContentResponse"),
    ("Ollama chat", "ollama.ChatResponse"),
    ("Ollama embed", "ollama.EmbedResponse"),
    ("LangChain", "langchain_core.messages.AIMessage"),
]


@pytest.mark.parametrize(("name", "place"), OBJECTS)
def test_objects_are_read_like_their_json(name: str, place: str):
    response, usage = FORMS[name]
    if place == "ollama.ChatResponse":
        usage = usage._replace(cache_read_tokens=None)  # of which the client knows nothing yet
    assert usage_of(built(place)(response)) == usage


def test_mistral_is_known_by_its_library():
    make = built("mistralai.client.models.ChatCompletionResponse")
    details = {"prompt_tokens_details": {"cached_tokens": 48}}
    usage = {**MISTRAL_USAGE, **details, "service_tier": "priority"}
    response = make(chat(usage, model="mistral-small-2506"))
    assert usage_of(response) == used(
        "mistral_ai", "mistral-small-2506", "chatcmpl-1", 80, 60, 20, read=48, tier="priority"
    )


def test_an_event_of_mistrals_stream_holds_its_chunk():
    event = {"data": chunk(MISTRAL_USAGE, model="mistral-small-2506")}
    told = usage_of(built("mistralai.client.models.CompletionEvent")(event))
    assert told == used("mistral_ai", "mistral-small-2506", "chatcmpl-1", 80, 60, 20)


def test_groq_is_known_by_its_library():
    response = built("groq.types.chat.ChatCompletion")(chat(MISTRAL_USAGE))
    assert usage_of(response).provider == "groq"


@pytest.mark.parametrize(
    "place", ["openai.NOT_GIVEN", "openai.omit", "mistralai.client.types.UNSET"]
)
def test_values_that_stand_for_absent_members_are_none(place: str):
    module, name = place.rsplit(".", 1)
    absent = getattr(import_module(module), name)
    details = {"cached_tokens": absent}
    told = usage_of(chat({**MISTRAL_USAGE, "prompt_tokens_details": details}))
    assert (told.input_tokens, told.cache_read_tokens, told.note) == (60, None, None)


def test_properties_of_models_are_read():
    class Model(BaseModel):
        model: str = "m"

        @property
        def usage(self) -> object:
            return MISTRAL_USAGE

    assert usage_of(Model()).tokens == 80


def test_litellm_names_the_provider_of_embeddings():
    make = built("litellm.EmbeddingResponse")
    response: Any = make(FORMS["OpenAI embeddings"].response)
    response._hidden_params = {"custom_llm_provider": "azure"}
    assert usage_of(response) == FORMS["OpenAI embeddings"].usage._replace(
        provider="azure.ai.openai"
    )


def test_litellm_names_the_provider():
    make = built("litellm.ModelResponse")
    response: Any = make(chat(CHAT_USAGE, model=CLAUDE, service_tier="flex"))
    response._hidden_params = {"custom_llm_provider": "bedrock"}
    assert usage_of(response) == used(
        "aws.bedrock",
        CLAUDE,
        "chatcmpl-1",
        2306,
        2006,
        300,
        read=1920,
        written=50,
        reasoning=192,
        tier="flex",
    )


def test_a_reply_from_litellms_cache_is_no_usage():
    response: Any = built("litellm.ModelResponse")(chat(CHAT_USAGE))
    for hit in (None, False):
        response._hidden_params = {"custom_llm_provider": "openai", "cache_hit": hit}
        assert usage_of(response).tokens == 2306
    response._hidden_params["cache_hit"] = True
    with pytest.raises(UsageNotFoundError, match="repeats the usage of the call that filled it"):
        usage_of(response)


def test_chunks_of_langchain_add_up_to_a_message():
    response, usage = FORMS["LangChain"]
    about = response["response_metadata"]
    make: Any = built("langchain_core.messages.AIMessageChunk")
    first = make({"content": "Hel", "id": "lc_run--1"})
    last = make({"content": "lo", "usage_metadata": response["usage_metadata"]})
    with pytest.raises(UsageNotFoundError):
        usage_of(first)
    assert usage_of(first + last + make({"content": "", "response_metadata": about})) == usage
    generation = import_module("langchain_core.outputs").ChatGenerationChunk
    assert usage_of(generation(message=first + last)).tokens == usage.tokens
    with pytest.raises(UsageNotFoundError, match="LangChain messages"):
        usage_of(import_module("langchain_core.outputs").LLMResult(generations=[[]]))


def test_a_reply_from_langchains_cache_is_no_usage():
    reply = built("langchain_core.messages.AIMessage")(FORMS["LangChain"].response)
    models: Any = import_module("langchain_core.language_models.fake_chat_models")
    caches: Any = import_module("langchain_core.caches")
    model = models.GenericFakeChatModel(messages=iter([reply]), cache=caches.InMemoryCache())
    assert usage_of(model.invoke("Hello")) == FORMS["LangChain"].usage
    cached = model.invoke("Hello")
    with pytest.raises(UsageNotFoundError, match="repeats the usage of the call that filled it"):
        usage_of(cached)
    generation = import_module("langchain_core.outputs").ChatGeneration(message=cached)
    with pytest.raises(UsageNotFoundError, match="repeats the usage of the call that filled it"):
        usage_of(generation)


def test_langchain_tells_anthropics_tier_in_the_usage_that_it_repeats():
    told = FORMS["LangChain"].response
    about = {"model_provider": "anthropic", "usage": {"service_tier": "priority"}}
    message = built("langchain_core.messages.AIMessage")({**told, "response_metadata": about})
    assert usage_of(message).service_tier == "priority"


@pytest.mark.parametrize("name", ["OpenTelemetry", "OpenTelemetry, old names", "OpenInference"])
def test_a_span_of_the_sdk_is_read(name: str):
    sdk: Any = import_module("opentelemetry.sdk.trace")
    span: Any = sdk.TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span("call")
    attributes, usage = FORMS[name]
    span.set_attributes(attributes)
    span.end()
    assert usage_of(span) == usage  # as a processor has it at its end
    assert usage_of(span._readable_span()) == usage
    assert usage_of(span.attributes) == usage


def test_a_raw_response_has_to_be_parsed():
    legacy: Any = import_module("openai._legacy_response").LegacyAPIResponse
    httpx: Any = import_module("httpx")
    types: Any = import_module("openai.types.chat")
    raw = legacy(
        raw=httpx.Response(200, json=chat(CHAT_USAGE)),
        cast_to=types.ChatCompletion,
        client=import_module("openai").OpenAI(api_key="none"),
        stream=False,
        stream_cls=None,
        options=import_module("openai._models").FinalRequestOptions(method="post", url="/"),
    )
    with pytest.raises(UsageNotFoundError):
        usage_of(raw)
    assert usage_of(raw.parse()).tokens == 2306


def test_compaction_is_read_from_objects():
    step = {**MESSAGE_USAGE, "type": "compaction"}
    response = built("anthropic.types.beta.BetaMessage")(
        message({**MESSAGE_USAGE, "iterations": [step]})
    )
    assert usage_of(response).tokens == 2860


@pytest.mark.timed
@pytest.mark.parametrize(("name", "place"), OBJECTS)
def test_reading_is_cheap(name: str, place: str):
    """At most 60 microseconds of this thread's time at the best of five (usually 10 to 30)."""
    response = built(place)(FORMS[name].response)
    best = 1.0
    for _ in range(5):
        start = time.thread_time()
        for _ in range(200):
            usage_of(response)
        best = min(best, (time.thread_time() - start) / 200)
    assert best < 60e-6
