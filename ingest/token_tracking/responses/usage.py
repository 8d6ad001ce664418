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
    if reported is None:
        raise UsageNotFoundError(type(response).__name__, KNOWN_FORMS)
    parts = _Parts(
        reported.input_tokens,
        reported.output_tokens,
        reported.cache_read_tokens,
        reported.cache_write_tokens,
        reported.cache_write_long_tokens,
        reported.reasoning_tokens,
    )
    known = [part for part in parts[:2] if part is not None]
    tokens = reported.total or (sum(known) if known else reported.total)
    if tokens is None or tokens > MAX_TOKENS:
        raise UsageNotFoundError(type(response).__name__, KNOWN_FORMS, reported.faults)
    note = "; ".join(reported.faults) or _contradiction(parts, tokens)
    if note is not None:
        note = f"only the total is kept: {note}"
        parts = _NO_PARTS
    elif len(known) == 1:
        parts, note = _completed(parts, tokens, told=bool(reported.total))
    usage = ResponseUsage(
        text_of_name(provider) or reported.provider,
        _text(model) or _text(reported.model),
        _text(reported.response_id),
        _tier(reported),
        reported.token_type,
        tokens,
        *parts,
        note,
    )
    if note is not None:
        complaints.log(
            logger,
            logging.WARNING,
            "usage of a response of %s (%s): %s",
            usage.provider,
            usage.model,
            note,
        )
    return usage


class _Parts(NamedTuple):
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    cache_write_long_tokens: int | None
    reasoning_tokens: int | None


_NO_PARTS: Final = _Parts(None, None, None, None, None, None)


def _contradiction(parts: _Parts, tokens: int) -> str | None:
    given, made, read, written, long, reasoning = parts
    if given is not None and made is not None and given + made != tokens:
        return f"input {given} + output {made} are not the total {tokens}"
    if (given or 0) + (made or 0) > tokens:
        return f"input {given} or output {made} is above the total {tokens}"
    if given is None and (read or written):
        return "tokens of the cache without an input"
    if (read or 0) + (written or 0) > (given or 0):
        return f"cache read {read or 0} + cache write {written or 0} are above the input {given}"
    if (long or 0) > (written or 0):
        return f"long cache write {long} is above the cache write {written}"
    if (reasoning or 0) > (made or 0):
        return f"reasoning {reasoning} is above the output {made}"
    return None


def _completed(parts: _Parts, tokens: int, *, told: bool) -> tuple[_Parts, str | None]:
    """Return the parts of a response that tells only one of input and output."""
    is_output_missing = parts.output_tokens is None
    missing = "output_tokens" if is_output_missing else "input_tokens"
    if told and tokens == (parts.input_tokens if is_output_missing else parts.output_tokens):
        parts = parts._replace(**{missing: 0})
        return parts, None
    # A part, be it 0, needs its whole.
    if is_output_missing:
        parts = parts._replace(reasoning_tokens=None)
    else:
        parts = parts._replace(
            cache_read_tokens=None, cache_write_tokens=None, cache_write_long_tokens=None
        )
    return parts, f"the response does not tell its {missing}"


def _tier(reported: Reported) -> str | None:
    tier = _text(reported.service_tier)
    tier = None if tier is None else tier.lower()
    return None if tier in _USUAL_TIERS else tier


def _text(value: object) -> str | None:
    """Return the text if an event can have it: no control character, at most 255 characters."""
    if not isinstance(value, str):
        return None
    value = str.__str__(value).strip()
    return value if 0 < len(value) <= MAX_TEXT and value.isprintable() else None
