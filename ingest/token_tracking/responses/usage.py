"""The usage that a provider's response reports, in the terms of a usage event."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..client.complaints import complaints
from ..client.logs import SafeLogger
from ..errors import UsageNotFoundError
from ..event.fields import MAX_TEXT, MAX_TOKENS
from .forms import KNOWN_FORMS, reported_by
from .providers import text_of_name

if TYPE_CHECKING:
    from .counts import Reported

logger = SafeLogger(__name__)


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
    kind = type(response).__name__
    try:
        reported = reported_by(response)
    except Exception as error:  # raised by the response's own attributes
        raise UsageNotFoundError(
            kind, f"reading it raised {type(error).__name__}", KNOWN_FORMS
        ) from error
    if isinstance(reported, str):
        raise UsageNotFoundError(kind, reported, KNOWN_FORMS)
    tokens, faults = _total(reported), reported.faults
    if tokens is None or tokens > MAX_TOKENS:
        problem = "; ".join(faults) or f"not told, or above {MAX_TOKENS}"
        raise UsageNotFoundError(kind, f"the total is unknown: {problem}", KNOWN_FORMS)
    reported = _with_zeros(reported)
    contradiction = "; ".join(dict.fromkeys(faults)) or _contradiction(reported, tokens)
    if contradiction is not None:
        note = f"only the total is kept: {contradiction}"
        parts = _Parts()
    else:
        parts, note = _completed(reported)
    if reported.left_out is not None:
        note = f"{'' if note is None else note + '; '}not counted: {reported.left_out}"
    usage = ResponseUsage(
        _text(text_of_name(provider)) or _text(reported.provider),
        _text(model) or _text(reported.model),
        _printable(reported.response_id),
        _text(reported.service_tier),
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
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_long_tokens: int | None = None
    reasoning_tokens: int | None = None


def _total(reported: Reported) -> int | None:
    """Return the response's total, or else the sum of input and output, if that is certain."""
    if reported.total:
        return reported.total
    known = [n for n in (reported.input_tokens, reported.output_tokens) if n is not None]
    if not known:
        return reported.total
    return sum(known) if len(known) == 2 or not reported.faults else None


def _with_zeros(told: Reported) -> Reported:
    """Return it with the zeros that JSON may leave out: nothing remains beside the other whole."""
    if told.output_tokens is None and told.input_tokens == told.total:
        return told._replace(output_tokens=0)
    if told.input_tokens is None and told.output_tokens == told.total:
        return told._replace(input_tokens=0)
    return told


def _contradiction(told: Reported, tokens: int) -> str | None:
    given, made = told.input_tokens, told.output_tokens
    if given is not None and made is not None and given + made != tokens:
        return f"input {given} + output {made} are not the total {tokens}"
    if (given or 0) + (made or 0) > tokens:
        return f"input {given} + output {made} are above the total {tokens}"
    read, written = told.cache_read_tokens or 0, told.cache_write_tokens
    short, long = told.cache_write_short_tokens or 0, told.cache_write_long_tokens or 0
    if given is not None and read + (written or 0) > given:
        return f"cache read {read} + cache write {written or 0} are above the input {given}"
    if written is not None and short + long > written:
        return f"cache writes of {short} (short) + {long} (long) are above cache write {written}"
    reasoning = told.reasoning_tokens or 0
    if made is not None and reasoning > made:
        return f"reasoning {reasoning} is above the output {made}"
    return None


def _completed(told: Reported) -> tuple[_Parts, str | None]:
    """Return the parts, each with its whole, and what the response should have told."""
    given, made = told.input_tokens, told.output_tokens
    read, written = told.cache_read_tokens, told.cache_write_tokens
    long, reasoning = told.cache_write_long_tokens, told.reasoning_tokens
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


def _text(value: object) -> str | None:
    """Return the text if an event can have it: no control character, at most 255 characters."""
    text = _printable(value)
    return None if text is None or len(text) > MAX_TEXT else text


def _printable(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    text = str.__str__(value).strip()
    return text if text and text.isprintable() else None
