"""Chat completions and embeddings in OpenAI's form, which many servers and libraries speak.

The input contains what was read from and written to the cache, and the output the reasoning.
"""

from __future__ import annotations

from .counts import Counts, Reported, first, member
from .providers import maker_of


def reported(response: object, usage: object) -> Reported:
    """Return what the response, or the last chunk of its stream, reports."""
    counts = Counts()
    input_tokens = counts.read(usage, "prompt_tokens")
    output_tokens = counts.read(usage, "completion_tokens")
    total = counts.read(usage, "total_tokens")
    is_embedding = member(response, "choices") is None and member(response, "data") is not None
    if is_embedding and output_tokens is None:
        output_tokens = 0
    inside = member(usage, "prompt_tokens_details")
    outside = member(usage, "completion_tokens_details")
    # LiteLLM and DeepSeek repeat the same tokens at the top level: never added to the details.
    cache_read = counts.read(inside, "cached_tokens")
    if cache_read is None:
        cache_read = counts.read(usage, "cache_read_input_tokens", "prompt_cache_hit_tokens")
    cache_write = counts.read(inside, "cache_write_tokens", "cache_creation_tokens")
    if cache_write is None:
        cache_write = counts.read(usage, "cache_creation_input_tokens")
    reasoning = counts.read(outside, "reasoning_tokens")
    if (
        reasoning
        and total is not None
        and total != counts.sum(input_tokens, output_tokens)
        and total == counts.sum(input_tokens, output_tokens, reasoning)
    ):
        # xAI reports the reasoning beside the output, and its total shows that.
        output_tokens = counts.sum(output_tokens, reasoning)
    return Reported(
        provider=_provider(response, usage),
        model=member(response, "model"),
        response_id=member(response, "id"),
        faults=counts.faults,
        total=total,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        cache_write_long_tokens=_long(counts, inside),
        reasoning_tokens=reasoning,
        service_tier=member(response, "service_tier"),
        token_type="embedding" if is_embedding else "llm",
    )


def _long(counts: Counts, inside: object) -> int | None:
    times = first(
        member(inside, "cache_write_tokens_details"),  # OpenAI's
        member(inside, "cache_creation_token_details"),  # LiteLLM's, of Anthropic's
    )
    return counts.read(times, "ttl_12h_tokens", "ephemeral_1h_input_tokens")


def _provider(response: object, usage: object) -> str | None:
    maker = maker_of(response)
    if maker != "openai":
        return maker
    if member(response, "x_groq") is not None:
        return "groq"
    if member(response, "prompt_filter_results") is not None:
        return "azure.ai.openai"
    return "openai" if member(usage, "prompt_cache_hit_tokens") is None else "deepseek"
