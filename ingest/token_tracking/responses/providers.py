"""The names of providers: the values of OpenTelemetry's `gen_ai.provider.name`."""

from __future__ import annotations

from typing import Final

from .counts import member

_OF_LITELLM: Final = "_hidden_params"
# How libraries and older conventions spell them; any other name stays as it is, in lower case.
_SPELLINGS: Final = {
    "aws_bedrock": "aws.bedrock",
    "az.ai.inference": "azure.ai.inference",
    "az.ai.openai": "azure.ai.openai",
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "azure_openai": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "cohere_chat": "cohere",
    "gemini": "gcp.gemini",
    "google": "gcp.gemini",
    "google_genai": "gcp.gemini",
    "google_vertexai": "gcp.vertex_ai",
    "mistral": "mistral_ai",
    "mistralai": "mistral_ai",
    "ollama_chat": "ollama",
    "vertex_ai": "gcp.vertex_ai",
    "vertex_ai_beta": "gcp.vertex_ai",
    "xai": "x_ai",
}


def text_of_name(name: object) -> str | None:
    """Return the provider's name as OpenTelemetry has it."""
    if not isinstance(name, str) or not name.strip():
        return None
    name = name.strip().lower()
    return _SPELLINGS.get(name, name)


def maker_of(response: object) -> str | None:
    """Return who answered, for a response of OpenAI's form.

    The form itself does not tell: a dictionary or an unknown class counts as OpenAI's.
    """
    package = _package(response)
    if package in {"groq", "mistralai"}:
        return text_of_name(package)
    if package == "litellm":
        return text_of_name(member(member(response, _OF_LITELLM), "custom_llm_provider"))
    return "openai"


def is_cached_reply(response: object) -> bool:
    """Return whether the response comes from LiteLLM's own cache."""
    hidden = member(response, _OF_LITELLM) if _package(response) == "litellm" else None
    return member(hidden, "cache_hit") is True


def _package(response: object) -> str:
    return type(response).__module__.partition(".")[0]
