"""Chat completions and embeddings in OpenAI's form, which many servers and libraries speak.

The input contains what was read from and written to the cache, and the output the reasoning.
"""

from __future__ import annotations

from .counts import Counts, Reported, first, member
from .providers import maker_of
from .tiers import unusual_tier


def reported(response: object, usage: object) -> Reported:
    """Return what the response, or the last chunk of its stream, reports."""
    counts = Counts()
    input_tokens = counts.read(usage, "prompt_tokens")
    output_tokens = counts.read(usage, "completion_tokens")
    total = counts.read(usage, "total_tokens")
    is_embedding = member(response, "data") is not None
    if is_embedding and output_tokens is None:
        output_tokens = 0
    inside = member(usage, "prompt_tokens_details")
    short, long = counts.by_lifetime(
        first(
            member(inside, "cache_write_tokens_details"),  # OpenAI's
            member(inside, "cache_creation_token_details"),  # LiteLLM's
        )
    )
    outside = member(usage, "completion_tokens_details")
    # Some repeat the same tokens at the top level, others tell them only there: never both added.
    cache_read = counts.same(
        "cached_tokens",
        counts.read(inside, "cached_tokens"),
        counts.read(usage, "cache_read_input_tokens", "prompt_cache_hit_tokens", "cached_tokens"),
    )
    cache_write = counts.same(
        "cache_write_tokens",
        counts.read(inside, "cache_write_tokens", "cache_creation_tokens"),
        counts.read(usage, "cache_creation_input_tokens"),
    )
    provider = _provider(response, usage)
    reasoning = counts.read(outside, "reasoning_tokens")
    at_top = counts.read(usage, "reasoning_tokens")
    left_out = None
    if provider == "perplexity":
        if reasoning or at_top or counts.read(usage, "citation_tokens"):
            left_out = "citation and reasoning tokens, which stand beside the total"
        reasoning = None
    else:
        reasoning = counts.same("reasoning_tokens", reasoning, at_top)
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
        service_tier=unusual_tier(member(response, "service_tier"), member(usage, "service_tier")),
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
