"""Anthropic's messages, also as Amazon Bedrock and Vertex AI return them."""

from __future__ import annotations

from typing import Final, cast

from .counts import Counts, Reported, member
from .tiers import unusual_tier

_HOSTS: Final = {"msg_bdrk_": "aws.bedrock", "msg_vrtx_": "gcp.vertex_ai"}
_READ: Final = "cache_read_input_tokens"
_WRITTEN: Final = "cache_creation_input_tokens"


def reported(response: object, usage: object) -> Reported:
    """Return what the message reports; its `input_tokens` is only what the cache has not."""
    counts = Counts()
    steps = _steps(usage)
    # The totals leave out what compaction consumed, which is billed, too.
    billed = [usage, *[step for step in steps if member(step, "type") == "compaction"]]

    def added(name: str, inside: str | None = None) -> int | None:
        holders = billed if inside is None else [member(one, inside) for one in billed]
        return counts.sum(*[counts.read(one, name) for one in holders])

    # The same tokens as those written, by how long they are kept.
    times = [counts.by_lifetime(member(one, "cache_creation")) for one in billed]
    short, long = (counts.sum(*parts) for parts in zip(*times, strict=True))
    uncached, read, written = added("input_tokens"), added(_READ), added(_WRITTEN)
    if written is None:
        written = counts.sum(short, long)
    response_id = member(response, "id")
    return Reported(
        provider=_host(response_id),
        model=member(response, "model"),
        response_id=response_id,
        faults=counts.faults,
        # In a stream, only the first event must tell the input.
        input_tokens=None if uncached is None else counts.sum(uncached, read, written),
        output_tokens=added("output_tokens"),
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_short_tokens=short,
        cache_write_long_tokens=long,
        reasoning_tokens=added("thinking_tokens", "output_tokens_details"),
        service_tier=unusual_tier(member(usage, "service_tier"), member(usage, "speed")),
        left_out="the tokens of an advisor, which is another model"
        if any(member(step, "type") == "advisor_message" for step in steps)
        else None,
    )


def _steps(usage: object) -> list[object]:
    steps = member(usage, "iterations")
    return cast("list[object]", steps) if isinstance(steps, list) else []


def _host(response_id: object) -> str:
    if isinstance(response_id, str):
        for beginning, host in _HOSTS.items():
            if response_id.startswith(beginning):
                return host
    return "anthropic"
