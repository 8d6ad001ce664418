"""OpenAI's responses, transcriptions, images and batches, and the last event of their streams."""

from __future__ import annotations

from .counts import Counts, Reported, first, member
from .providers import maker_of
from .tiers import unusual_tier


def reported(response: object, usage: object) -> Reported:
    """Return what the response reports; input and output contain their parts."""
    counts = Counts()
    inside = first(member(usage, "input_tokens_details"), member(usage, "input_token_details"))
    short, long = counts.by_lifetime(member(inside, "cache_write_tokens_details"))
    return Reported(
        provider=maker_of(response),
        model=member(response, "model"),
        response_id=member(response, "id"),
        faults=counts.faults,
        total=counts.read(usage, "total_tokens"),
        input_tokens=counts.read(usage, "input_tokens"),
        output_tokens=counts.read(usage, "output_tokens"),
        # Others use Anthropic's names, inside or beside the input that contains them.
        cache_read_tokens=counts.same(
            "cached_tokens",
            counts.read(inside, "cached_tokens", "cache_read_input_tokens"),
            counts.read(usage, "cache_read_input_tokens"),
        ),
        cache_write_tokens=counts.same(
            "cache_write_tokens",
            counts.read(inside, "cache_write_tokens", "cache_creation_input_tokens"),
            counts.read(usage, "cache_creation_input_tokens"),
        ),
        cache_write_short_tokens=short,
        cache_write_long_tokens=long,
        reasoning_tokens=counts.read(member(usage, "output_tokens_details"), "reasoning_tokens"),
        service_tier="batch"
        if member(response, "object") == "batch"
        else unusual_tier(member(response, "service_tier")),
    )
