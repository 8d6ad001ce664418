"""OpenAI's chat completions, embeddings and responses, whose form many servers and libraries speak.

The input contains what was read from and written to the cache, and the output the reasoning.
"""

from __future__ import annotations

from .counts import Counts, Reported, first, member
from .providers import maker_of
from .tiers import unusual_tier


def of_chat(response: object, usage: object) -> Reported:
    """Return what a chat completion, its last chunk, or an embedding reports."""
    return _reported(response, usage, "prompt", "completion")


def of_response(response: object, usage: object) -> Reported:
    """Return what a response, transcription, image, batch, or the last event of these reports."""
    return _reported(response, usage, "input", "output")


def _reported(response: object, usage: object, given: str, made: str) -> Reported:
    counts = Counts()
    input_tokens = counts.read(usage, f"{given}_tokens")
    output_tokens = counts.read(usage, f"{made}_tokens")
    total = counts.read(usage, "total_tokens")
    is_embedding = given == "prompt" and member(response, "data") is not None
    if is_embedding and output_tokens is None:
        output_tokens = 0
    inside = first(
        member(usage, f"{given}_tokens_details"),
        member(usage, f"{given}_token_details"),  # of transcriptions and realtime sessions
    )
    # Some repeat the same tokens at the top level or in Anthropic's names, others tell them only
    # there: never both added.
    cache_read = counts.same(
        "cached_tokens",
        counts.read(inside, "cached_tokens", "cache_read_input_tokens"),
        counts.read(usage, "cache_read_input_tokens", "prompt_cache_hit_tokens", "cached_tokens"),
    )
    cache_write = counts.same(
        "cache_write_tokens",
        counts.read(
            inside, "cache_write_tokens", "cache_creation_tokens", "cache_creation_input_tokens"
        ),
        counts.read(usage, "cache_creation_input_tokens"),
    )
    short, long = counts.by_lifetime(
        first(
            member(inside, "cache_write_tokens_details"),  # OpenAI's
            member(inside, "cache_creation_token_details"),  # LiteLLM's
        )
    )
    provider = _provider(response, usage)
    reasoning = counts.same(
        "reasoning_tokens",
        counts.read(member(usage, f"{made}_tokens_details"), "reasoning_tokens"),
        counts.read(usage, "reasoning_tokens"),
    )
    left_out = None
    if provider == "perplexity":
        if reasoning or counts.read(usage, "citation_tokens"):
            left_out = "citation and reasoning tokens, which stand beside the total"
        reasoning = None
    if (
        reasoning
        and input_tokens is not None
        and output_tokens is not None
        and total == input_tokens + output_tokens + reasoning
    ):
        # xAI reports the reasoning beside the output, and its total shows that.
        output_tokens += reasoning
    return Reported(
        provider=provider,
        model=member(response, "model"),
        # Ollama's are random numbers below 1000.
        response_id=None if provider == "ollama" else member(response, "id"),
        faults=counts.faults,
        total=total,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        cache_write_short_tokens=short,
        cache_write_long_tokens=long,
        reasoning_tokens=reasoning,
        service_tier="batch"
        if member(response, "object") == "batch"
        else unusual_tier(member(response, "service_tier"), member(usage, "service_tier")),
        token_type="embedding" if is_embedding else "llm",
        left_out=left_out,
    )


def _provider(response: object, usage: object) -> str | None:
    maker = maker_of(response)
    if maker != "openai":
        return maker
    if member(response, "x_groq") is not None:
        return "groq"
    if member(response, "prompt_filter_results") is not None:
        return "azure.ai.openai"
    if member(response, "system_fingerprint") == "fp_ollama":
        return "ollama"
    if first(member(usage, "num_search_queries"), member(usage, "citation_tokens")) is not None:
        return "perplexity"
    return "openai" if member(usage, "prompt_cache_hit_tokens") is None else "deepseek"
