"""Amazon Bedrock's Converse, the metadata event of its streams, and the models of Amazon."""

from __future__ import annotations

from typing import cast

from .counts import Counts, Reported, member
from .tiers import unusual_tier


def reported(response: object, usage: object) -> Reported:
    """Return what the response reports; `inputTokens` is only what the cache has not.

    The response does not name the model: it is the request's `modelId`.
    """
    counts = Counts()
    uncached = counts.read(usage, "inputTokens")
    read = counts.read(usage, "cacheReadInputTokens", "cacheReadInputTokenCount")
    written = counts.read(usage, "cacheWriteInputTokens", "cacheWriteInputTokenCount")
    details = member(usage, "cacheDetails")
    return Reported(
        provider="aws.bedrock",
        model=None,
        response_id=member(member(response, "ResponseMetadata"), "RequestId"),
        faults=counts.faults,
        total=counts.read(usage, "totalTokens"),
        input_tokens=None if uncached is None else counts.sum(uncached, read, written),
        output_tokens=counts.read(usage, "outputTokens"),
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_short_tokens=_kept(counts, details, long=False),
        cache_write_long_tokens=_kept(counts, details, long=True),
        service_tier=unusual_tier(
            member(member(response, "serviceTier"), "type"),
            member(member(response, "performanceConfig"), "latency"),
        ),
    )


def _kept(counts: Counts, details: object, *, long: bool) -> int | None:
    if not isinstance(details, list):
        return None
    kept = [one for one in cast("list[object]", details) if (member(one, "ttl") == "1h") is long]
    return counts.sum(*[counts.read(one, "inputTokens") for one in kept])
