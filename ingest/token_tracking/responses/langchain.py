"""LangChain's messages, whose `usage_metadata` is the same for all providers."""

from __future__ import annotations

from typing import Final

from .counts import Counts, Reported, first, member
from .providers import text_of_name
from .tiers import unusual_tier

_TIERS: Final = ("flex", "priority")  # after which OpenAI's parts are named


def is_cached(usage: object) -> bool:
    """Return whether the message comes from LangChain's own cache, which sets its cost to 0."""
    return member(usage, "total_cost") == 0


def reported(message: object, usage: object) -> Reported:
    """Return what the message reports; input and output contain their parts."""
    counts = Counts()
    about = member(message, "response_metadata")
    inside = member(usage, "input_token_details")
    outside = member(usage, "output_token_details")
    tier = unusual_tier(
        member(about, "service_tier"),  # OpenAI's; Anthropic's is in the usage that it repeats
        member(member(about, "usage"), "service_tier"),
        *[tier for tier in _TIERS if member(inside, tier) is not None],
    )

    def read(source: object, name: str) -> int | None:
        return counts.read(source, name, *[f"{tier}_{name}" for tier in _TIERS])

    written = read(inside, "cache_creation")
    short, long = counts.by_lifetime(inside)
    if not written:  # where its parts are known, the sum is left out
        times = counts.sum(short, long)
        written = written if times is None else times
    return Reported(
        provider=text_of_name(first(member(about, "model_provider"), member(about, "provider"))),
        model=first(member(about, "model_name"), member(about, "model")),
        response_id=first(member(about, "id"), member(message, "id")),
        faults=counts.faults,
        total=counts.read(usage, "total_tokens"),
        input_tokens=counts.read(usage, "input_tokens"),
        output_tokens=counts.read(usage, "output_tokens"),
        cache_read_tokens=read(inside, "cache_read"),
        cache_write_tokens=written,
        cache_write_short_tokens=short,
        cache_write_long_tokens=long,
        reasoning_tokens=read(outside, "reasoning"),
        service_tier=tier,
    )
