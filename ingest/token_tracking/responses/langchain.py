"""LangChain's messages, whose `usage_metadata` is the same for all providers."""

from __future__ import annotations

from .counts import Counts, Reported, first, member
from .providers import text_of_name
from .tiers import unusual_tier


def reported(message: object, usage: object) -> Reported:
    """Return what the message reports; input and output contain their parts."""
    counts = Counts()
    about = member(message, "response_metadata")
    inside = member(usage, "input_token_details")
    outside = member(usage, "output_token_details")
    tier = unusual_tier(
        member(about, "service_tier"),  # OpenAI's; Anthropic's is in the usage that it repeats
        member(member(about, "usage"), "service_tier"),
    )
    # Of a request with a tier, OpenAI's parts are named after it.
    before = "" if tier is None else f"{tier}_"
    written = counts.read(inside, "cache_creation", f"{before}cache_creation")
    long = counts.read(inside, "ephemeral_1h_input_tokens")
    if not written:  # where these two are known, the sum of both is left out
        times = counts.sum(counts.read(inside, "ephemeral_5m_input_tokens"), long)
        written = written if times is None else times
    return Reported(
        provider=text_of_name(first(member(about, "model_provider"), member(about, "provider"))),
        model=first(member(about, "model_name"), member(about, "model")),
        response_id=first(member(about, "id"), member(message, "id")),
        faults=counts.faults,
        total=counts.read(usage, "total_tokens"),
        input_tokens=counts.read(usage, "input_tokens"),
        output_tokens=counts.read(usage, "output_tokens"),
        cache_read_tokens=counts.read(inside, "cache_read", f"{before}cache_read"),
        cache_write_tokens=written,
        cache_write_long_tokens=long,
        reasoning_tokens=counts.read(outside, "reasoning", f"{before}reasoning"),
        service_tier=tier,
    )
