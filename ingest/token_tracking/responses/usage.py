"""The usage that a provider's response reports, in the terms of a usage event."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from ..client.complaints import complaints
from ..client.logs import SafeLogger
from ..errors import UsageNotFoundError
from ..event.fields import MAX_TEXT, MAX_TOKENS
from .forms import KNOWN_FORMS, reported_by
from .providers import text_of_name

if TYPE_CHECKING:
    from .counts import Reported

logger = SafeLogger(__name__)

# No tier was chosen, or the one that every request has.
_USUAL_TIERS: Final = frozenset(
    {"", "auto", "default", "on_demand", "standard", "standard_only", "unspecified"}
)


class ResponseUsage(NamedTuple):
    """What one response consumed; the fields are those of a usage event.

    `input_tokens` and `output_tokens` contain their parts: `cache_read_tokens` and
    `cache_write_tokens` are in the input (`cache_write_long_tokens` is in `cache_write_tokens`),
    `reasoning_tokens` is in the output. None is what the response does not tell. `service_tier` is
    None for the provider's usual one. `note` says where the response contradicts itself or is
    incomplete: after a contradiction, only `tokens` is known.
    """

    provider: str | None
    model: str | None
    response_id: str | None
    service_tier: str | None
    token_type: Literal["llm", "embedding"]
    tokens: int
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    cache_write_long_tokens: int | None
    reasoning_tokens: int | None
    note: str | None


def usage_of(
    response: object, *, provider: str | None = None, model: str | None = None
) -> ResponseUsage:
    """Return the usage that a provider's response reports.

    Args:
        response: a response of a provider's library, or the dictionary of its JSON; of a stream,
            the last chunk or event, which has the usage.
        provider: who answered, where the response does not tell: OpenAI's form counts as OpenAI's.
        model: the model, where the response does not name it (Bedrock Converse).

    Raises:
        UsageNotFoundError: the response has no usage, or its form is unknown.

    Example:
        >>> usage_of({"model": "gpt-4o", "usage": {"prompt_tokens": 9, "completion_tokens": 3}})
        ... # doctest: +ELLIPSIS
        ResponseUsage(provider='openai', model='gpt-4o', ..., tokens=12, input_tokens=9, ...)

    """
    reported = reported_by(response)
    kind = type(response).__name__
    if reported is None:
        raise UsageNotFoundError(kind, "no usage of a known form", KNOWN_FORMS)
    parts = _Parts(
        reported.input_tokens,
        reported.output_tokens,
        reported.cache_read_tokens,
        reported.cache_write_tokens,
        reported.cache_write_long_tokens,
        reported.reasoning_tokens,
    )
    tokens, faults = _total(reported), reported.faults
    if tokens is None or tokens > MAX_TOKENS:
        problem = "; ".join(faults) or f"not told, or above {MAX_TOKENS}"
        raise UsageNotFoundError(kind, f"the total is unknown: {problem}", KNOWN_FORMS)
    contradiction = "; ".join(dict.fromkeys(faults)) or _contradiction(parts, tokens)
    if contradiction is not None:
        note = f"only the total is kept: {contradiction}"
        parts = _NO_PARTS
    else:
        parts, note = _completed(parts, tokens, is_told=bool(reported.total))
    if reported.left_out is not None:
        note = f"{'' if note is None else note + '; '}not counted: {reported.left_out}"
    usage = ResponseUsage(
        text_of_name(provider) or reported.provider,
        _text(model) or _text(reported.model),
        _text(reported.response_id),
        _tier(reported.service_tier),
        reported.token_type,
        tokens,
        *parts,
        note,
    )
    if note is not None:
        message = "usage of a response of %s (%s): %s"
        complaints.log(logger, logging.WARNING, message, usage.provider, usage.model, note)
    return usage


class _Parts(NamedTuple):
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    cache_write_long_tokens: int | None
    reasoning_tokens: int | None


_NO_PARTS: Final = _Parts(None, None, None, None, None, None)


def _total(reported: Reported) -> int | None:
    """Return the response's total, or else the sum of input and output, if that is certain."""
    if reported.total:
        return reported.total
    known = [n for n in (reported.input_tokens, reported.output_tokens) if n is not None]
    if not known:
        return reported.total
    return sum(known) if len(known) == 2 or not reported.faults else None


def _contradiction(parts: _Parts, tokens: int) -> str | None:
    given, made = parts.input_tokens, parts.output_tokens
    if given is not None and made is not None and given + made != tokens:
        return f"input {given} + output {made} are not the total {tokens}"
    if (given or 0) + (made or 0) > tokens:
        return f"input {given} + output {made} are above the total {tokens}"
    read, written = parts.cache_read_tokens or 0, parts.cache_write_tokens or 0
    if read + written > (given or 0):
        return f"cache read {read} + cache write {written} are above the input {given}"
    if (parts.cache_write_long_tokens or 0) > written:
        return f"long cache write {parts.cache_write_long_tokens} is above cache write {written}"
    if (parts.reasoning_tokens or 0) > (made or 0):
        return f"reasoning {parts.reasoning_tokens} is above the output {made}"
    return None


def _completed(parts: _Parts, tokens: int, *, is_told: bool) -> tuple[_Parts, str | None]:
    """Return the parts, each with its whole, and what the response should have told."""
    given, made, read, written, long, reasoning = parts
    if is_told and made is None and given == tokens:
        made = 0
    if is_told and given is None and made == tokens:
        given = 0
    note = None
    if given is None:
        note = "the response does not tell its input tokens"
        read = written = None
    if written is None:
        long = None
    if made is None:
        note = "the response does not tell its output tokens"
        reasoning = None
    if given is None and made is None:
        note = "the response tells only its total"
    return _Parts(given, made, read, written, long, reasoning), note


def _tier(value: object) -> str | None:
    tier = _text(value)
    tier = None if tier is None else tier.lower()
    return None if tier in _USUAL_TIERS else tier


def _text(value: object) -> str | None:
    """Return the text if an event can have it: no control character, at most 255 characters."""
    if not isinstance(value, str):
        return None
    value = str.__str__(value).strip()
    return value if 0 < len(value) <= MAX_TEXT and value.isprintable() else None
