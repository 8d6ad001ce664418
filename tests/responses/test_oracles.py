"""The same responses through the readers of genai-prices and LiteLLM.

Their counts are equal to ours, but for the differences that are listed with the reason.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import httpx
import pytest

from tests.support.responses import FORMS, MISTRAL_USAGE, chat, message, responded
from token_tracking import usage_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_tracking import ResponseUsage

pytestmark = [
    pytest.mark.xdist_group("providers"),
    # Of LiteLLM's own types, which pydantic builds when they are first used.
    pytest.mark.filterwarnings("ignore:Item '.*' on TypedDict class:UserWarning"),
]

XAI = chat(
    {
        "prompt_tokens": 32,
        "completion_tokens": 9,
        "total_tokens": 135,
        "completion_tokens_details": {"reasoning_tokens": 94},
    },
    model="grok-4",
)
PERPLEXITY = chat(
    {
        "prompt_tokens": 33,
        "completion_tokens": 7163,
        "total_tokens": 7196,
        "citation_tokens": 9827,
        "num_search_queries": 18,
        "reasoning_tokens": 3997,
    }
)
COMPACTED = message(
    {
        "input_tokens": 23_000,
        "output_tokens": 1000,
        "iterations": [{"type": "compaction", "input_tokens": 180_000, "output_tokens": 3500}],
    }
)
RESPONSES = {name: case.response for name, case in FORMS.items()}
RESPONSES |= {"xAI": XAI, "Perplexity": PERPLEXITY, "Anthropic, compacted": COMPACTED}
RESPONSES["Mistral"] = chat({**MISTRAL_USAGE, "prompt_tokens_details": {"cached_tokens": 48}})
RESPONSES["Databricks"] = chat(
    {**MISTRAL_USAGE, "cache_read_input_tokens": 48, "reasoning_tokens": 15}
)
RESPONSES["Modal"] = chat({**MISTRAL_USAGE, "reasoning_tokens": 15})
RESPONSES["Anthropic in OpenAI's form"] = chat({**MISTRAL_USAGE, "cached_tokens": 48})
RESPONSES["Perplexity responses"] = responded(
    {
        "input_tokens": 1340,
        "input_tokens_details": {"cache_read_input_tokens": 1000},
        "output_tokens": 90,
        "output_tokens_details": {"reasoning_tokens": 60},
        "total_tokens": 1430,
    }
)
RESPONSES["Anthropic, compacted, all steps"] = message(
    {
        "input_tokens": 23_000,
        "output_tokens": 1000,
        "iterations": [
            {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3500},
            {"type": "message", "input_tokens": 23_000, "output_tokens": 1000},
        ],
    }
)


def counts_of(usage: ResponseUsage) -> dict[str, int]:
    """Return the counts by genai-prices' names, without those that are absent or 0."""
    counts = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cache_write_1h_tokens": usage.cache_write_long_tokens,
        "output_reasoning_tokens": usage.reasoning_tokens,
    }
    return {name: count for name, count in counts.items() if count}


# Response, provider and flavour of genai-prices, and what differs: (name, theirs, ours).
GENAI_PRICES: list[tuple[str, str, str, set[tuple[str, int, int]]]] = [
    ("OpenAI chat", "openai", "chat", set()),
    ("OpenAI chat, last chunk", "openai", "chat", set()),
    # Theirs drops how long a cache write is kept, which has a price of its own.
    ("OpenAI responses", "openai", "responses", {("cache_write_1h_tokens", 0, 100)}),
    ("OpenAI embeddings", "openai", "embeddings", set()),
    ("Azure OpenAI", "azure", "chat", set()),
    ("Groq", "groq", "default", set()),
    ("vLLM", "openai", "chat", set()),
    # Theirs reads only `prompt_tokens_details`, which DeepSeek's older responses lack.
    ("DeepSeek", "deepseek", "chat", {("cache_read_tokens", 0, 32)}),
    ("xAI", "x-ai", "chat", set()),
    # Theirs adds to the output what stands beside the total, at prices of its own, though citations
    # are input. Our note says that these tokens are not counted.
    (
        "Perplexity",
        "perplexity",
        "default",
        {("output_tokens", 20_987, 7163), ("output_reasoning_tokens", 3997, 0)},
    ),
    ("Anthropic", "anthropic", "default", set()),
    # Theirs drops what compaction consumed, which Anthropic bills beside the totals.
    (
        "Anthropic, compacted",
        "anthropic",
        "default",
        {("input_tokens", 23_000, 203_000), ("output_tokens", 1000, 4500)},
    ),
    # Theirs has no thinking tokens on Bedrock, though the message is Anthropic's.
    ("Anthropic on Bedrock", "aws", "anthropic", {("output_reasoning_tokens", 0, 60)}),
    ("Gemini", "google", "default", set()),
    ("Vertex AI", "google", "default", set()),
    ("Bedrock Converse", "aws", "default", set()),
    ("Cohere v2", "cohere", "default", set()),
    ("Cohere embeddings", "cohere", "embeddings", set()),
    ("OpenAI images", "openai", "images", set()),
    ("OpenAI realtime, last event", "openai", "realtime", set()),
    ("Gemini embeddings", "google", "default", set()),
    ("Mistral", "mistral", "default", set()),
    ("Perplexity responses", "perplexity", "responses", set()),
    ("Databricks", "databricks", "chat", set()),
    ("Modal", "modal", "chat", set()),
    ("Anthropic in OpenAI's form", "anthropic", "chat", set()),
]


@pytest.mark.parametrize(
    ("name", "provider", "flavor", "differences"),
    GENAI_PRICES,
    ids=[row[0] for row in GENAI_PRICES],
)
def test_genai_prices_counts_the_same(
    name: str, provider: str, flavor: str, differences: set[tuple[str, int, int]]
):
    oracle: Any = import_module("genai_prices.data")
    [reader] = [one for one in oracle.providers if one.id == provider]
    # The model of Cohere's and Bedrock's responses is not in them.
    response = {"model": "any", **RESPONSES[name]}
    _, usage = reader.extract_usage(response, api_flavor=flavor)
    ours = counts_of(usage_of(RESPONSES[name]))
    kinds = (
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "cache_write_1h_tokens",
        "output_reasoning_tokens",
    )
    theirs = {kind: getattr(usage, kind, None) or 0 for kind in kinds}
    found = {(kind, theirs[kind], ours.get(kind, 0)) for kind in kinds}
    assert {row for row in found if row[1] != row[2]} == differences
    assert sum(ours.values()) > 0


def transformed(model: str) -> Callable[[dict[str, Any]], Any]:
    """Return what makes LiteLLM's answer out of the provider's, as its `completion` does."""

    def answer(response: dict[str, Any]) -> Any:
        litellm: Any = import_module("litellm")
        provider, name = model.split("/", 1)
        manager: Any = import_module("litellm.utils").ProviderConfigManager
        config = manager.get_provider_chat_config(name, litellm.LlmProviders(provider))
        answered = config.transform_response(
            model=name,
            raw_response=httpx.Response(200, json=response),
            model_response=litellm.ModelResponse(),
            logging_obj=MagicMock(),
            request_data={},
            messages=[{"role": "user", "content": "Hello"}],
            optional_params={},
            litellm_params={},
            encoding=None,
            api_key="none",
        )
        answered._hidden_params["custom_llm_provider"] = provider
        return answered

    return answer


def of_responses(response: dict[str, Any]) -> Any:
    logging: Any = import_module("litellm.responses.utils").ResponseAPILoggingUtils
    usage = logging._transform_response_api_usage_to_chat_usage(response["usage"])
    return import_module("litellm").ModelResponse(usage=usage)


# Response, what makes LiteLLM's of it, and what differs: (name, theirs, ours).
LITELLM: list[tuple[str, Callable[[dict[str, Any]], Any], set[tuple[str, int, int]]]] = [
    ("OpenAI chat", transformed("openai/gpt-4o"), set()),
    ("OpenAI responses", of_responses, set()),
    ("Groq", transformed("groq/openai/gpt-oss-120b"), set()),
    ("vLLM", transformed("hosted_vllm/my/model"), set()),
    ("DeepSeek", transformed("deepseek/deepseek-chat"), set()),
    ("xAI", transformed("xai/grok-4"), set()),
    ("Anthropic", transformed("anthropic/claude-sonnet-4-5"), set()),
    # Theirs counts only the step of compaction, as if the message itself were in the list of steps.
    (
        "Anthropic, compacted",
        transformed("anthropic/claude-sonnet-4-5"),
        {("input_tokens", 180_000, 203_000), ("output_tokens", 3500, 4500)},
    ),
    ("Anthropic, compacted, all steps", transformed("anthropic/claude-sonnet-4-5"), set()),
    ("Anthropic on Bedrock", transformed("bedrock/anthropic.claude-sonnet-4-5"), set()),
    ("Gemini", transformed("gemini/gemini-2.5-flash"), set()),
    ("Vertex AI", transformed("vertex_ai/gemini-2.5-flash"), set()),
    ("Bedrock Converse", transformed("bedrock/amazon.nova-pro-v1:0"), set()),
    # Theirs counts what the model saw, of which Cohere bills only a part.
    (
        "Cohere v2",
        transformed("cohere_chat/command-a"),
        {("input_tokens", 204, 9), ("output_tokens", 6, 4)},
    ),
    # Theirs has nothing of Ollama's cache, as its client has not.
    ("Ollama chat", transformed("ollama_chat/llama3.3"), {("cache_read_tokens", 0, 16)}),
    ("Perplexity", transformed("perplexity/sonar"), set()),
]


@pytest.mark.parametrize(
    ("name", "answer", "differences"), LITELLM, ids=[row[0] for row in LITELLM]
)
def test_litellm_counts_the_same(
    name: str,
    answer: Callable[[dict[str, Any]], Any],
    differences: set[tuple[str, int, int]],
):
    """Its responses have OpenAI's form, so they are read by us, too: all the way round."""
    response = answer(RESPONSES[name])
    ours = counts_of(usage_of(RESPONSES[name]))
    theirs = counts_of(usage_of(response))
    assert theirs == counts_of(usage_of(response.model_dump()))
    found = {(kind, theirs.get(kind, 0), ours.get(kind, 0)) for kind in {*theirs, *ours}}
    assert {row for row in found if row[1] != row[2]} == differences
