"""Recognizes the form of a response by its members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from . import (
    anthropic,
    bedrock,
    cohere,
    gemini,
    langchain,
    ollama,
    openai,
    opentelemetry,
)
from .counts import first, member
from .providers import is_cached_reply
from .spans import repeats_others

if TYPE_CHECKING:
    from .counts import Reported

KNOWN_FORMS: Final = (
    "OpenAI chat completions, responses and embeddings (Azure, Groq, Mistral, vLLM, LiteLLM), "
    "Anthropic messages, Google Gemini, Bedrock Converse, Cohere, Ollama, LangChain messages, "
    "OpenTelemetry GenAI span attributes"
)

_CACHED: Final = "a reply from a cache repeats the usage of the call that filled it"


def reported_by(response: object) -> Reported | str:
    """Return what the response reports, or why that is not usage of its own."""
    if is_cached_reply(response):
        return _CACHED
    attributes = _attributes(response)
    if attributes is not None:
        if repeats_others(attributes):
            return "a span that is no call of a model repeats the usage of the calls below it"
        return opentelemetry.reported(attributes)
    return _of_response(response) or _of_event(response) or "no usage of a known form"


def _of_response(response: object) -> Reported | str | None:
    usage = member(response, "usage")
    if usage is not None:
        return _of_usage(response, usage)
    usage = first(member(response, "usage_metadata"), member(response, "usageMetadata"))
    if usage is not None:
        if _has(usage, "input_tokens", "output_tokens"):
            if langchain.is_cached(usage):
                return _CACHED
            return langchain.reported(response, usage)
        return gemini.reported(response, usage)
    if _has(response, "prompt_eval_count", "eval_count"):
        return ollama.reported(response)
    usage = member(response, "meta")
    if _has(usage, "billed_units", "tokens"):
        return cohere.reported(response, usage)
    return None


def _of_usage(response: object, usage: object) -> Reported | None:
    if _has(usage, "prompt_tokens", "completion_tokens"):
        return openai.of_chat(response, usage)
    if _has(usage, "input_tokens", "output_tokens"):
        if _is_anthropic(response, usage):
            return anthropic.reported(response, usage)
        return openai.of_response(response, usage)
    if _has(usage, "inputTokens", "outputTokens"):
        return bedrock.reported(response, usage)
    if _has(usage, "billed_units", "tokens"):
        return cohere.reported(response, usage)
    return None


def _of_event(event: object) -> Reported | str | None:
    """Return what the last event of a stream reports."""
    for name in ("response", "message", "data"):  # OpenAI's; LangChain's generations; Mistral's
        held = member(event, name)
        found = None if held is None else _of_response(held)
        if found is not None:
            return found
    held = member(event, "metadata")  # Bedrock's
    usage = member(held, "usage")
    if usage is not None:
        return _of_usage(held, usage)
    for name in ("delta", "x_groq"):  # Cohere's, Groq's
        usage = member(member(event, name), "usage")
        if usage is not None:
            return _of_usage(event, usage)
    return None


def _attributes(response: object) -> Mapping[str, object] | None:
    """Return the attributes of a span, or what is only these, if they have usage."""
    for held in (response, member(response, "attributes")):
        if isinstance(held, Mapping):
            attributes = cast("Mapping[str, object]", held)
            if opentelemetry.is_span(attributes):
                return attributes
    return None


def _is_anthropic(response: object, usage: object) -> bool:
    kind = member(response, "type")
    if isinstance(kind, str) and kind.startswith("message"):
        return True
    return member(usage, "total_tokens") is None and _has(
        usage, "cache_read_input_tokens", "cache_creation_input_tokens"
    )


def _has(source: object, name: str, other: str) -> bool:
    return member(source, name) is not None or member(source, other) is not None
