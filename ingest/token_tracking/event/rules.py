"""The rules for a usage event, and its wire format; imports neither driver nor pydantic.

The procedure `usage_event_problem` gives the same verdicts with the same texts: an event that is
accepted here and spooled must be accepted there later.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from json.encoder import encode_basestring as quoted
from numbers import Rational, Real
from operator import index
from typing import TYPE_CHECKING, Final, TypeGuard, cast
from uuid import UUID

from ..errors import InvalidUsageError
from .fields import (
    CLOCK_TOLERANCE,
    EARLIEST,
    EVENT_FIELDS,
    FIELDS,
    INTEGER_RULE,
    MAX_TEXT,
    MAX_TOKENS,
    NO_TOKENS,
    PART_FIELDS,
    PARTS,
)
from .kept import fields_of
from .keys import new_event_key
from .metadata import metadata_text
from .values import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_KNOWN: Final = frozenset(EVENT_FIELDS)
_LEAST: Final = {field.name: field.least for field in FIELDS if field.kind == "text"}
_DEFAULTS: Final = {field.name: quoted(field.default) for field in FIELDS if field.default}
_SUMS: Final = {whole: " + ".join(parts) for whole, parts in PARTS.items()}
_SUM: Final = _SUMS["tokens"]
_TIME_RULE: Final = "must be ISO 8601 text with a UTC offset"
_RANGE_RULE: Final = "must be from 2000-01-01 UTC to 5 minutes ahead"
_HELD_RULE: Final = "must be text that PostgreSQL can hold"
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?)?"
    r"(?P<offset>Z|[+-](0[0-9]|1[0-5])(:?[0-5][0-9])?)?"
)
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_OCCURRED_AT: Final = b'"occurred_at":"'
_TWO_DIGITS: Final = tuple(f"{number:02}" for number in range(60))


class WireEvent:
    """An accepted event: its key in the database's order, and its JSON text in UTF-8."""

    __slots__ = ("idempotency_key", "payload", "tenant_id")

    def __init__(self, tenant_id: str, idempotency_key: str, payload: bytes) -> None:
        self.tenant_id = tenant_id
        self.idempotency_key = idempotency_key
        self.payload = payload


def to_wire(fields: object, now: datetime) -> WireEvent:
    """Return the event in its wire format; sets a missing key and a missing time.

    Args:
        fields: the event's fields by the column names of `usage_events`; None means absent.
        now: the time of the call in UTC, the default of `occurred_at`.

    Raises:
        InvalidUsageError: a rule is broken; the reason names the field, the finding and the rule.

    """
    if type(fields) is dict:
        fields = cast("dict[str, object]", fields)
    elif isinstance(fields, Mapping):
        fields = fields_of(cast("Mapping[str, object]", fields))
    else:
        reason = f"event: {kind_of(fields)}; must be an object"
        raise InvalidUsageError(reason)
    if not _KNOWN.issuperset(fields):
        unknown = next(str(name) for name in fields if name not in _KNOWN)
        # An arbitrary field name could inject a line into a log.
        shown = unknown if _NAME.fullmatch(unknown) else "a field"
        reason = f"{shown}: unknown field; an event has only {', '.join(EVENT_FIELDS)}"
        raise InvalidUsageError(reason)
    usual = _usual_event(fields, now)
    if usual is not None:
        return usual
    texts: dict[str, str] = {}
    for field, least in _LEAST.items():
        value = fields.get(field)
        if value is not None:
            texts[field] = checked_text(field, value, least=least)
    if "tenant_id" not in texts:
        reason = f"tenant_id: missing; must be text of 1 to {MAX_TEXT} characters"
        raise InvalidUsageError(reason)

    given: dict[str, int] = {}
    for field in PART_FIELDS:
        value = fields.get(field)
        if value is not None:
            given[field] = _checked_integer(field, value)
    parts = sum(given.get(part, 0) for part in PARTS["tokens"])
    told = fields.get("tokens")
    tokens = 0 if told is None else _checked_integer("tokens", told)
    if tokens and tokens < parts:
        reason = f"tokens: less than {_SUM}; must be at least their sum, or 0 to use the sum"
        raise InvalidUsageError(reason)
    if parts > MAX_TOKENS:
        reason = f"tokens: {_SUM} above the limit; {INTEGER_RULE}"
        raise InvalidUsageError(reason)
    _check_parts_of_parts(given)

    metadata = fields.get("metadata")
    metadata_json = "{}" if metadata is None else metadata_text(metadata)
    occurred_at = fields.get("occurred_at")
    instant = now if occurred_at is None else _checked_time(occurred_at, now)

    if "idempotency_key" not in texts:
        texts["idempotency_key"] = new_event_key()
    written = {**_DEFAULTS, **{field: quoted(text) for field, text in texts.items()}}
    for field, part in given.items():
        written[field] = str(part)
    written["tokens"] = str(tokens or parts)
    written["metadata"] = metadata_json
    written["occurred_at"] = f'"{canonical_time(instant)}"'
    # Canonical form: no spaces, column order, no nulls. The procedure is fastest with it, if no
    # text needs an escape.
    members = [f'"{field}":{written[field]}' for field in EVENT_FIELDS if field in written]
    text = f"{{{','.join(members)}}}"
    try:
        payload = text.encode()
    except UnicodeEncodeError:
        _refuse_unholdable(texts, metadata_json)
        raise
    if "\\u0000" in text:
        _refuse_unholdable(texts, metadata_json)
    if told is None and not any(part in given for part in PARTS["tokens"]):
        # The last rule: a call without tokens is told about any other problem first.
        raise InvalidUsageError(NO_TOKENS)
    return WireEvent(texts["tenant_id"], texts["idempotency_key"], payload)


def _usual_event(fields: Mapping[str, object], now: datetime) -> WireEvent | None:
    """Return the event if all its fields are known and usual; None if `to_wire` must look closer.

    A fast path for nearly every call. It accepts nothing that the rest of `to_wire` refuses.
    """
    # Non-text values raise in the join below.
    text = cast("Callable[[str], str | None]", fields.get)
    tenant_id = text("tenant_id")
    key = text("idempotency_key")
    token_type = text("token_type")
    operation = text("operation")
    model = text("model")
    agent_id = text("agent_id")
    conversation_id = text("conversation_id")
    collection_id = text("collection_id")
    get = fields.get
    tokens = get("tokens")
    input_tokens = get("input_tokens")
    output_tokens = get("output_tokens")
    metadata = get("metadata")
    occurred_at = get("occurred_at")
    if type(tenant_id) is not str or type(key) is not str or type(tokens) is not int:
        return None
    if token_type is None or operation is None:
        return None
    pieces = ['{"tenant_id":"', tenant_id, '","idempotency_key":"', key, "", token_type]
    pieces += ('","operation":"', operation)
    if model is not None:
        pieces += ('","model":"', model)
    if agent_id is not None:
        pieces += ('","agent_id":"', agent_id)
    if conversation_id is not None:
        pieces += ('","conversation_id":"', conversation_id)
    if collection_id is not None:
        pieces += ('","collection_id":"', collection_id)
    given = pieces[1::2]
    try:
        # The join also turns an Enum member into its plain text.
        texts = "".join(given) if sum(map(len, given)) <= MAX_TEXT else ""
    except TypeError:
        return None
    # Continue only if all texts are short and no character needs an escape or a closer look.
    if not 0 < len(texts) <= MAX_TEXT or not texts.isprintable() or '"' in texts or "\\" in texts:
        return None
    if not tenant_id or not key or agent_id == "":
        return None
    parts = 0
    numbers = '"'
    if input_tokens is not None:
        if type(input_tokens) is not int or input_tokens < 0:
            return None
        parts = input_tokens
        numbers = f'","input_tokens":{input_tokens}'
    if output_tokens is not None:
        if type(output_tokens) is not int or output_tokens < 0:
            return None
        parts += output_tokens
        numbers += f',"output_tokens":{output_tokens}'
    tokens = tokens or parts
    if not parts <= tokens <= MAX_TOKENS:
        return None
    provider = get("provider")
    service_tier = get("service_tier")
    read = get("cache_read_tokens")
    write = get("cache_write_tokens")
    long = get("cache_write_long_tokens")
    reasoning = get("reasoning_tokens")
    kinds: str | None = ""
    if not (provider is service_tier is read is write is long is reasoning is None):
        kinds = _usual_texts(provider=provider, service_tier=service_tier)
        inside = _usual_parts(input_tokens, output_tokens, read, write, long, reasoning)
        if kinds is None or inside is None:
            return None
        kinds += inside
    pieces[4] = f'","tokens":{tokens},"token_type":"'
    metadata_json = "{}" if metadata is None else metadata_text(metadata)
    if "\\u0000" in metadata_json:
        return None
    instant = now if occurred_at is None else _checked_time(occurred_at, now)
    pieces.append(
        f'{numbers},"metadata":{metadata_json},"occurred_at":"{canonical_time(instant)}"{kinds}}}'
    )
    try:
        return WireEvent(tenant_id, key, "".join(pieces).encode())
    except UnicodeEncodeError:  # half of a surrogate pair in metadata
        return None


def _usual_texts(**texts: object) -> str | None:
    """Return the members of texts that need no escape; None if one needs a closer look."""
    members = ""
    for name, text in texts.items():
        if text is None:
            continue
        if type(text) is not str or len(text) > MAX_TEXT:
            return None
        if text and (not text.isprintable() or '"' in text or "\\" in text):
            return None
        members += f',"{name}":"{text}"'
    return members


def _usual_parts(
    input_tokens: int | None,
    output_tokens: int | None,
    read: object,
    write: object,
    long: object,
    reasoning: object,
) -> str | None:
    """Return the members of parts within their wholes; None if one needs a closer look."""
    members = ""
    room = -1 if input_tokens is None else input_tokens
    if read is not None:
        if type(read) is not int or not 0 <= read <= room:
            return None
        room -= read
        members = f',"cache_read_tokens":{read}'
    if write is not None:
        if type(write) is not int or not 0 <= write <= room:
            return None
        members += f',"cache_write_tokens":{write}'
    if long is not None:
        if type(long) is not int or type(write) is not int or not 0 <= long <= write:
            return None
        members += f',"cache_write_long_tokens":{long}'
    if reasoning is not None:
        if type(reasoning) is not int or output_tokens is None:
            return None
        if not 0 <= reasoning <= output_tokens:
            return None
        members += f',"reasoning_tokens":{reasoning}'
    return members


def _check_parts_of_parts(given: Mapping[str, int]) -> None:
    for whole, parts in PARTS.items():
        if whole == "tokens":  # which may be more or less than its parts: 0 means their sum
            continue
        told = [part for part in parts if part in given]
        if told and whole not in given:
            reason = f"{told[0]}: given without {whole}; must be a part of it"
            raise InvalidUsageError(reason)
        if told and given[whole] < sum(given[part] for part in told):
            reason = f"{whole}: less than {_SUMS[whole]}; must be at least as many"
            raise InvalidUsageError(reason)


def checked_text(field: str, value: object, *, least: int, most: int = MAX_TEXT) -> str:
    """Return a text or UUID as plain `str`; raise `InvalidUsageError` if a rule is broken."""
    if isinstance(value, str):
        text = str.__str__(value)  # the text of an Enum member, too
    elif isinstance(value, UUID):
        return str(value)
    else:
        reason = f"{field}: {kind_of(value)}; must be text"
        raise InvalidUsageError(reason)
    if not least <= len(text) <= most:
        reason = (
            f"{field}: text of {len(text)} characters; must be text of {least} to {most} characters"
        )
        raise InvalidUsageError(reason)
    return text


def checked_holdable(field: str, text: str) -> str:
    """Return the text; raise `InvalidUsageError` if it has NUL or half of a surrogate pair."""
    if "\0" in text or _has_surrogates(text):
        reason = f"{field}: text with NUL or half of a surrogate pair; {_HELD_RULE}"
        raise InvalidUsageError(reason)
    return text


def checked_instant(field: str, value: object) -> datetime:
    """Return an aware datetime, or ISO 8601 text with an offset, as a datetime in UTC."""
    if type(value) is datetime and value.tzinfo is UTC:
        return value
    if isinstance(value, datetime):
        instant = value
        naive = value.utcoffset() is None
    elif isinstance(value, str):
        match = _TIME.fullmatch(value)
        if match is None:
            reason = f"{field}: not a valid time; {_TIME_RULE}"
            raise InvalidUsageError(reason)
        naive = match["offset"] is None
        try:
            instant = datetime.fromisoformat(value)
        except ValueError as error:
            reason = f"{field}: not a valid date; {_TIME_RULE}"
            raise InvalidUsageError(reason) from error
    else:
        reason = f"{field}: {kind_of(value)}; {_TIME_RULE}"
        raise InvalidUsageError(reason)
    if naive:
        reason = f"{field}: a time without UTC offset; {_TIME_RULE}"
        raise InvalidUsageError(reason)
    if instant.tzinfo is UTC:
        return instant
    try:
        return instant.astimezone(UTC)
    except OverflowError as error:
        reason = f"{field}: a time at the end of the calendar; {_RANGE_RULE}"
        raise InvalidUsageError(reason) from error


def _checked_integer(field: str, value: object) -> int:
    if type(value) is int and 0 <= value <= MAX_TOKENS:
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        if isinstance(value, float) and value.is_integer():  # JSON's 1e3 and 2.0
            return _checked_integer(field, int(value))
        if not _is_finite(value):
            reason = f"{field}: {kind_of(value)}; {INTEGER_RULE}"
            raise InvalidUsageError(reason)
        if not isinstance(value, float):
            # Compare before converting: 1e999999 has many digits.
            if not 0 <= value <= MAX_TOKENS:
                return _checked_integer(field, -1 if value < 0 else MAX_TOKENS + 1)
            if (whole := math.floor(value)) == value:
                return whole
        reason = f"{field}: a number with a fraction; {INTEGER_RULE}"
        raise InvalidUsageError(reason)
    number = index(cast("int", value))
    if number < 0:
        reason = f"{field}: a negative number; {INTEGER_RULE}"
        raise InvalidUsageError(reason)
    if number > MAX_TOKENS:
        reason = f"{field}: a number above the limit; {INTEGER_RULE}"
        raise InvalidUsageError(reason)
    return number


def _is_finite(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number of any type except bool, such as Decimal."""
    if isinstance(value, Decimal):
        return value.is_finite()
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return isinstance(value, Rational) or math.isfinite(value)


def _checked_time(value: object, now: datetime) -> datetime:
    if type(value) is datetime and value.tzinfo is UTC and EARLIEST <= value <= now:
        return value  # the usual case
    instant = checked_instant("occurred_at", value)
    if instant < EARLIEST:
        reason = f"occurred_at: a time before 2000; {_RANGE_RULE}"
        raise InvalidUsageError(reason)
    if instant > now + CLOCK_TOLERANCE:
        reason = f"occurred_at: a time in the future; {_RANGE_RULE}"
        raise InvalidUsageError(reason)
    return instant


def canonical_time(instant: datetime) -> str:
    """Return an instant in UTC, with a four-digit year, as PostgreSQL writes it in ISO 8601.

    It has no trailing zeros. Formatting by hand takes half as long as `isoformat`.
    """
    two = _TWO_DIGITS
    text = (
        f"{instant.year}-{two[instant.month]}-{two[instant.day]}"
        f"T{two[instant.hour]}:{two[instant.minute]}:{two[instant.second]}"
    )
    if instant.microsecond:
        text = f"{text}.{instant.microsecond:06}".rstrip("0")
    return f"{text}+00:00"


def occurred_at_of(payload: bytes) -> bytes:
    """Return the time of an event in its wire format; as text it sorts by time.

    Empty if the event has none, which only SQL accepts.
    """
    # Search from the end, as metadata may contain the same text. The texts that follow it cannot:
    # in them its quotes are escaped.
    at = payload.rfind(_OCCURRED_AT)
    return payload[at + len(_OCCURRED_AT) :].partition(b'"')[0] if at >= 0 else b""


def _refuse_unholdable(texts: Mapping[str, str], metadata_json: str) -> None:
    for field, text in texts.items():
        checked_holdable(field, text)
    for text in _texts(json.loads(metadata_json)):
        checked_holdable("metadata", text)


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, content in cast("dict[str, object]", value).items():
            yield name
            yield from _texts(content)
    elif isinstance(value, list):
        for content in cast("list[object]", value):
            yield from _texts(content)


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
