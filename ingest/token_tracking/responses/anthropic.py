"""Anthropic's messages, also as Amazon Bedrock and Vertex AI return them."""

from __future__ import annotations

from typing import Final, cast

from .counts import Counts, Reported, first, member, total_of

_HOSTS: Final = {"msg_bdrk_": "aws.bedrock", "msg_vrtx_": "gcp.vertex_ai"}
_READ: Final = "cache_read_input_tokens"
_WRITTEN: Final = "cache_creation_input_tokens"


def reported(response: object, usage: object) -> Reported:
    """Return what the message reports; its `input_tokens` is only what the cache has not."""
    counts = Counts()
    # The totals leave out what compaction consumed, which is billed, too.
    turns = [usage, *_compactions(usage)]
    uncached = total_of(*[counts.read(turn, "input_tokens") for turn in turns])
    read = total_of(*[counts.read(turn, _READ) for turn in turns])
    written = total_of(*[counts.read(turn, _WRITTEN) for turn in turns])
    times = [member(turn, "cache_creation") for turn in turns]
    if written is None:
        names = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
        written = total_of(*[counts.read(time, name) for time in times for name in names])
    response_id = first(member(response, "id"))
    tier = member(usage, "service_tier")
    if tier in {None, "standard"}:
        tier = member(usage, "speed")
    return Reported(
        provider=_host(response_id),
        model=member(response, "model"),
        response_id=response_id,
        faults=counts.faults,
        input_tokens=None if uncached is None else total_of(uncached, read, written),
        output_tokens=total_of(*[counts.read(turn, "output_tokens") for turn in turns]),
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_long_tokens=total_of(
            *[counts.read(time, "ephemeral_1h_input_tokens") for time in times]
        ),
        reasoning_tokens=total_of(
            *[
                counts.read(member(turn, "output_tokens_details"), "thinking_tokens")
                for turn in turns
            ]
        ),
        service_tier=tier,
    )


def _compactions(usage: object) -> list[object]:
    turns = member(usage, "iterations")
    if not isinstance(turns, list):
        return []
    return [turn for turn in cast("list[object]", turns) if member(turn, "type") == "compaction"]


def _host(response_id: object) -> str:
    if isinstance(response_id, str):
        for beginning, host in _HOSTS.items():
            if response_id.startswith(beginning):
                return host
    return "anthropic"
