"""The same responses through the readers of genai-prices and LiteLLM.

Their counts are equal to ours, but for the differences that are listed with the reason.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.responses import FORMS, chat, message
from token_tracking import usage_of

if TYPE_CHECKING:
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


def anthropic(response: dict[str, Any]) -> Any:
    config: Any = import_module("litellm.llms.anthropic.chat.transformation").AnthropicConfig()
    return config.calculate_usage(usage_object=response["usage"], reasoning_content=None)


def gemini(response: dict[str, Any]) -> Any:
    place = "litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini"
    return import_module(place).VertexGeminiConfig._calculate_usage(completion_response=response)


def converse(response: dict[str, Any]) -> Any:
    place = "litellm.llms.bedrock.chat.converse_transformation"
    return import_module(place).AmazonConverseConfig().transform_usage(response["usage"])


def responses(response: dict[str, Any]) -> Any:
    utils: Any = import_module("litellm.responses.utils").ResponseAPILoggingUtils
    return utils._transform_response_api_usage_to_chat_usage(response["usage"])


def openai(response: dict[str, Any]) -> Any:
    return import_module("litellm").ModelResponse(**response).usage


# Response, LiteLLM's reader, and what differs: (name, theirs, ours).
LITELLM: list[tuple[str, Any, set[tuple[str, int, int]]]] = [
    ("OpenAI chat", openai, set()),
    # Theirs drops how long a cache write is kept, which has a price of its own.
    ("OpenAI responses", responses, {("cache_write_1h_tokens", 0, 100)}),
    ("Anthropic", anthropic, set()),
    ("Gemini", gemini, set()),
    ("Bedrock Converse", converse, set()),
]


@pytest.mark.parametrize(
    ("name", "reader", "differences"), LITELLM, ids=[row[0] for row in LITELLM]
)
def test_litellm_counts_the_same(name: str, reader: Any, differences: set[tuple[str, int, int]]):
    """Its usage has OpenAI's form, so it is read by us, too: all the way round."""
    usage = reader(RESPONSES[name])
    ours = counts_of(usage_of(RESPONSES[name]))
    theirs = counts_of(usage_of(SimpleNamespace(usage=usage, choices=[])))
    assert theirs == counts_of(usage_of({"usage": usage.model_dump(), "choices": []}))
    found = {(kind, theirs.get(kind, 0), ours.get(kind, 0)) for kind in {*theirs, *ours}}
    assert {row for row in found if row[1] != row[2]} == differences
