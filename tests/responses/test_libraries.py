"""The same responses as objects of the providers' own libraries."""

from __future__ import annotations

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.responses import (
    CHAT_USAGE,
    CLAUDE,
    FORMS,
    MESSAGE_USAGE,
    MISTRAL_USAGE,
    chat,
    message,
    used,
)
from token_tracking import usage_of

if TYPE_CHECKING:
    from collections.abc import Callable

# The libraries take seconds to import, so one worker does it.
pytestmark = pytest.mark.xdist_group("providers")


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
    usage = {**MISTRAL_USAGE, "prompt_tokens_details": {"cached_tokens": 48}}
    response = make(chat(usage, model="mistral-small-2506"))
    assert usage_of(response) == used(
        "mistral_ai", "mistral-small-2506", "chatcmpl-1", 80, 60, 20, read=48
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
