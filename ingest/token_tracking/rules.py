"""The rules for a usage event, and its form on the wire; no driver, no pydantic.

The procedure `usage_event_problem` gives the same verdicts in the same words: what is accepted here
and spooled is accepted there later.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from json.encoder import encode_basestring as _quoted
from numbers import Rational, Real
from operator import index
from typing import TYPE_CHECKING, Final, TypeGuard, cast
from uuid import UUID

from .errors import InvalidUsageError
from .keys import new_event_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

EVENT_FIELDS: Final = (
    "tenant_id",
    "idempotency_key",
    "tokens",
    "token_type",
    "operation",
    "model",
    "agent_id",
    "conversation_id",
    "collection_id",
    "input_tokens",
    "output_tokens",
    "metadata",
    "occurred_at",
)
MAX_TOKENS: Final = 2**40
MAX_TEXT: Final = 255
MAX_METADATA_BYTES: Final = 16 * 1024
MAX_METADATA_DEPTH: Final = 8
MAX_KEPT_BYTES: Final = 64 * 1024
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
CLOCK_TOLERANCE: Final = timedelta(minutes=5)
LARGEST_NUMBER: Final = 17976931348623157 * 10**292  # that a double holds: what languages read

# Each with the fewest characters that it may have.
_TEXT_FIELDS: Final = {
    "tenant_id": 1,
    "idempotency_key": 1,
    "token_type": 0,
    "operation": 0,
    "model": 0,
    "agent_id": 1,
    "conversation_id": 0,
    "collection_id": 0,
}
_OPTIONAL_TEXT_FIELDS: Final = ("model", "agent_id", "conversation_id", "collection_id")
_KNOWN: Final = frozenset(EVENT_FIELDS)
_INTEGER_RULE: Final = f"must be an integer from 0 to {MAX_TOKENS}"
NO_TOKENS: Final = f"tokens: missing, and so are input_tokens and output_tokens; {_INTEGER_RULE}"
_TIME_RULE: Final = "must be ISO 8601 text with a UTC offset"
_RANGE_RULE: Final = "must be from 2000-01-01 UTC to 5 minutes ahead"
TOO_LARGE: Final = (
    f"metadata: more than {MAX_METADATA_BYTES} bytes of JSON text; "
    f"must be at most {MAX_METADATA_BYTES} bytes"
)
_TOO_DEEP: Final = "metadata: nested more than 8 deep; must be at most 8 deep"
_TOO_HUGE: Final = (
    "metadata: a number beyond 1.8e308; must be JSON values that any language can read"
)
_LEAST_OF_ITEM: Final = 3  # bytes of a digit and ', '
_LEAST_OF_MEMBER: Final = 7  # bytes of '"": 1, '
_NO_NUMBER: Final = "metadata: NaN or infinity; must be JSON values"
_HELD_RULE: Final = "must be text that PostgreSQL can hold"
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?)?"
    r"(?P<offset>Z|[+-](0[0-9]|1[0-5])(:?[0-5][0-9])?)?"
)
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_DOUBLE_BITS: Final = 1024
_TWO_DIGITS: Final = tuple(f"{number:02}" for number in range(60))
# Metadata within these, and flat but for lists, cannot break a rule: each character of its text
# takes four bytes and a space at most, each of a few floats the 325 digits of the longest one.
_FEW: Final = 16
_SHORT_NAME: Final = 64
_SHORT_TEXT: Final = 100
_SHORT_NUMBER: Final = 10**18
_SHORT_WHOLE: Final = 2000
_WORDS: Final[Mapping[object, str]] = {None: "null", False: "false", True: "true"}
# What each value of a refused payload costs beside its text, so that many short ones end, too.
_KEPT_BESIDE_TEXT: Final = 16
_KEPT_FIELDS: Final = 15
_DEEPEST_KEPT: Final = 50
_LONG_INTEGER: Final = 13_000  # bits; Python writes no more than 4300 digits
_TEXT_TYPES: Final = (UUID, date, time, Decimal)  # a datetime is a date
_KEPT_OF_FIELD: Final = 1000

type_of_json: Final[dict[type, str]] = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    tuple: "an array",
    dict: "an object",
    type(None): "null",
}


class WireEvent:
    """One accepted event: its key in the database's order, and its JSON text in UTF-8."""

    __slots__ = ("idempotency_key", "payload", "tenant_id")

    def __init__(self, tenant_id: str, idempotency_key: str, payload: bytes) -> None:
        self.tenant_id = tenant_id
        self.idempotency_key = idempotency_key
        self.payload = payload


def to_wire(fields: object, now: datetime) -> WireEvent:
    """Return the event as it is sent; the key and the time of the call are fixed here.

    Args:
        fields: the event's fields by the column names of `usage_events`; None is as good as absent.
        now: the time of the call in UTC, for `occurred_at` where the caller gives none.

    Raises:
        InvalidUsageError: a rule is broken; the reason names field, what was found and rule.

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
        # An arbitrary name could forge a line of a log.
        shown = unknown if _NAME.fullmatch(unknown) else "a field"
        reason = f"{shown}: unknown field; an event has only {', '.join(EVENT_FIELDS)}"
        raise InvalidUsageError(reason)
    usual = _usual_event(fields, now)
    if usual is not None:
        return usual
    texts: dict[str, str] = {}
    for field, least in _TEXT_FIELDS.items():
        value = fields.get(field)
        if value is not None:
            texts[field] = checked_text(field, value, least=least)
    if "tenant_id" not in texts:
        reason = "tenant_id: missing; must be text of 1 to 255 characters"
        raise InvalidUsageError(reason)
    tenant_id = texts["tenant_id"]
    key = texts.get("idempotency_key") or new_event_key()

    parts = 0
    given: dict[str, int] = {}
    for field in ("input_tokens", "output_tokens"):
        value = fields.get(field)
        if value is not None:
            given[field] = part = _checked_integer(field, value)
            parts += part
    told = fields.get("tokens")
    tokens = 0 if told is None else _checked_integer("tokens", told)
    if tokens and tokens < parts:
        reason = (
            "tokens: less than input_tokens + output_tokens; "
            "must be at least their sum, or 0 to use the sum"
        )
        raise InvalidUsageError(reason)
    if parts > MAX_TOKENS:
        reason = f"tokens: input_tokens + output_tokens above the limit; {_INTEGER_RULE}"
        raise InvalidUsageError(reason)

    metadata = fields.get("metadata")
    metadata_text = "{}" if metadata is None else _metadata_text(metadata)
    occurred_at = fields.get("occurred_at")
    instant = now if occurred_at is None else _checked_time(occurred_at, now)

    # Canonical: no spaces, the columns' order, nothing null. The procedure is quickest with it, if
    # no text needs an escape.
    optional = "".join(
        [f',"{field}":{_quoted(texts[field])}' for field in _OPTIONAL_TEXT_FIELDS if field in texts]
    )
    for field, part in given.items():
        optional += f',"{field}":{part}'
    text = (
        f'{{"tenant_id":{_quoted(tenant_id)},"idempotency_key":{_quoted(key)},'
        f'"tokens":{tokens or parts},"token_type":{_quoted(texts.get("token_type", "llm"))},'
        f'"operation":{_quoted(texts.get("operation", "query"))}{optional},'
        f'"metadata":{metadata_text},"occurred_at":"{canonical_time(instant)}"}}'
    )
    try:
        payload = text.encode()
    except UnicodeEncodeError:
        _refuse_unholdable(texts, metadata_text)
        raise
    if "\\u0000" in text:
        _refuse_unholdable(texts, metadata_text)
    if told is None and not given:
        # The last rule: whoever counts nothing learns of all else first.
        raise InvalidUsageError(NO_TOKENS)
    return WireEvent(tenant_id, key, payload)


def _usual_event(fields: Mapping[str, object], now: datetime) -> WireEvent | None:
    """Return the event of known fields that are all as usual; None where there is more to look at.

    It is on the path of every call, quicker than the rest of `to_wire`, and accepts nothing that
    this refuses.
    """
    # What is no text raises where the texts are put together.
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
        # Of a label's own class it takes the characters alone.
        texts = "".join(given) if sum(map(len, given)) <= MAX_TEXT else ""
    except TypeError:
        return None
    # All are short, and no character needs an escape or a closer look.
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
    pieces[4] = f'","tokens":{tokens},"token_type":"'
    metadata_text = "{}" if metadata is None else _metadata_text(metadata)
    if "\\u0000" in metadata_text:
        return None
    instant = now if occurred_at is None else _checked_time(occurred_at, now)
    pieces.append(
        f'{numbers},"metadata":{metadata_text},"occurred_at":"{canonical_time(instant)}"}}'
    )
    try:
        return WireEvent(tenant_id, key, "".join(pieces).encode())
    except UnicodeEncodeError:  # half of a surrogate pair in metadata
        return None


def checked_text(field: str, value: object, *, least: int, most: int = MAX_TEXT) -> str:
    """Return a text or UUID as plain `str`; raise `InvalidUsageError` where a rule is broken."""
    if isinstance(value, str):
        text = str.__str__(value)  # a label's own text, where it is an Enum's member
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
    """Return the text; raise `InvalidUsageError` where it has NUL or half of a surrogate pair."""
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


def kind_of(value: object) -> str:
    """Name a value's kind as JSON does, or by its Python type; never show the value."""
    return type_of_json.get(type(value)) or f"a value of type {type(value).__name__}"


def keepable(payload: object) -> bytes:
    """Return a refused payload as JSON text, whatever it is: what JSON cannot say goes in as text.

    Escaped, so that NUL and lone surrogates pass. Above 64 KiB it is cut, as the procedures do: the
    first fields, of each long one the beginning as text.
    """
    room = _Room(MAX_KEPT_BYTES, all_or_nothing=True)
    plain = _plain(payload, room)
    text = "" if room.is_cut else json.dumps(plain, allow_nan=False)
    if room.is_cut or len(text) > MAX_KEPT_BYTES:
        text = json.dumps(_abridged(payload))
    return text.encode()


def fields_of(event: Mapping[str, object]) -> dict[str, object]:
    """Return an event's fields as a dictionary of their own; not all, where there is no end."""
    most = MAX_KEPT_BYTES // _KEPT_BESIDE_TEXT
    kind = type(event)
    if kind is dict and len(event) <= most:
        return dict(event)  # the usual one
    members = dict[str, object].items(event) if isinstance(event, dict) else event.items()
    return dict(islice(members, most))


def _checked_integer(field: str, value: object) -> int:
    if type(value) is int and 0 <= value <= MAX_TOKENS:
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        if isinstance(value, float) and value.is_integer():  # JSON's 1e3 and 2.0
            return _checked_integer(field, int(value))
        if not _is_finite(value):
            reason = f"{field}: {kind_of(value)}; {_INTEGER_RULE}"
            raise InvalidUsageError(reason)
        if not isinstance(value, float):
            # Compared first: 1e999999 has many digits.
            if not 0 <= value <= MAX_TOKENS:
                return _checked_integer(field, -1 if value < 0 else MAX_TOKENS + 1)
            if (whole := math.floor(value)) == value:
                return whole
        reason = f"{field}: a number with a fraction; {_INTEGER_RULE}"
        raise InvalidUsageError(reason)
    number = index(cast("int", value))
    if number < 0:
        reason = f"{field}: a negative number; {_INTEGER_RULE}"
        raise InvalidUsageError(reason)
    if number > MAX_TOKENS:
        reason = f"{field}: a number above the limit; {_INTEGER_RULE}"
        raise InvalidUsageError(reason)
    return number


def _is_finite(value: object) -> TypeGuard[float]:
    """Say whether it is a number, of any kind but bool: a database's sum is a Decimal."""
    if isinstance(value, Decimal):
        return value.is_finite()
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return isinstance(value, Rational) or math.isfinite(value)


def _checked_time(value: object, now: datetime) -> datetime:
    if type(value) is datetime and value.tzinfo is UTC and EARLIEST <= value <= now:
        return value  # the usual one
    instant = checked_instant("occurred_at", value)
    if instant < EARLIEST:
        reason = f"occurred_at: a time before 2000; {_RANGE_RULE}"
        raise InvalidUsageError(reason)
    if instant > now + CLOCK_TOLERANCE:
        reason = f"occurred_at: a time in the future; {_RANGE_RULE}"
        raise InvalidUsageError(reason)
    return instant


def canonical_time(instant: datetime) -> str:
    """Return an instant in UTC, of a year of four digits, as PostgreSQL writes it in ISO 8601.

    Without trailing zeros; by hand, which takes half as long as `isoformat`.
    """
    two = _TWO_DIGITS
    text = (
        f"{instant.year}-{two[instant.month]}-{two[instant.day]}"
        f"T{two[instant.hour]}:{two[instant.minute]}:{two[instant.second]}"
    )
    if instant.microsecond:
        text = f"{text}.{instant.microsecond:06}".rstrip("0")
    return f"{text}+00:00"


def _metadata_text(metadata: object) -> str:
    if type(metadata) is dict:
        members = cast("dict[object, object]", metadata)
        flat = _flat_text(members) if len(members) <= _FEW else None
        if flat is not None:
            return flat
    elif not isinstance(metadata, Mapping):
        reason = f"metadata: {kind_of(metadata)}; must be an object"
        raise InvalidUsageError(reason)
    return _encode(_Measure().plain(cast("Mapping[object, object]", metadata)))


def _flat_text(metadata: Mapping[object, object]) -> str | None:
    """Return JSON text of what is so small and plain that it breaks no rule, as nearly all is."""
    members: list[str] = []
    for name, value in metadata.items():
        if type(name) is not str or len(name) > _SHORT_NAME:
            return None
        if type(value) is str and len(value) <= _SHORT_TEXT:
            text = _quoted(value)
        elif type(value) is int and -_SHORT_NUMBER < value < _SHORT_NUMBER:
            text = str(value)
        elif type(value) is list:
            text = _flat_list(cast("list[object]", value))
        else:
            text = _flat(value)
        if text is None:
            return None
        members.append(f"{_quoted(name)}:{text}")
    whole = ",".join(members)
    return f"{{{whole}}}" if len(whole) <= _SHORT_WHOLE else None


def _flat_list(values: list[object]) -> str | None:
    if len(values) > _FEW:
        return None
    texts = [None if type(value) is float else _flat(value) for value in values]
    return None if None in texts else f"[{','.join(cast('list[str]', texts))}]"


def _flat(value: object) -> str | None:
    kind = type(value)
    if kind is str:
        return _quoted(cast("str", value)) if len(cast("str", value)) <= _SHORT_TEXT else None
    if kind is int:
        return str(value) if -_SHORT_NUMBER < cast("int", value) < _SHORT_NUMBER else None
    if kind is float:
        if not math.isfinite(cast("float", value)):
            raise InvalidUsageError(_NO_NUMBER)
        return repr(value)
    return _WORDS[value] if value is None or kind is bool else None


class _Measure:
    """Makes plain values of metadata and counts the bytes that PostgreSQL writes for them.

    It stops at the limit, before anything large is touched: no value holds its caller's event loop,
    however large it is, and one that holds itself or has no end is too large.
    """

    def __init__(self) -> None:
        self._room = MAX_METADATA_BYTES
        self._is_deep = False
        self._is_huge = False
        self._waiting: list[tuple[object, dict[str, object] | list[object], int]] = []

    def plain(self, metadata: Mapping[object, object]) -> object:
        """Return a copy that JSON has; raise `InvalidUsageError` where a rule is broken."""
        whole = self._value(metadata, 1)
        # Not recursive: size comes before depth, and so is known of what is too deep.
        while self._waiting:
            source, copy, level = self._waiting.pop()
            if level > MAX_METADATA_DEPTH:
                self._is_deep = True
                source = self._inmost(source)
            if isinstance(copy, dict):
                for name, value in cast("Mapping[object, object]", source).items():
                    self._spend(4)  # ': ' and ', ', of which there is one less; but two brackets
                    copy[self._name(name)] = self._value(value, level + 1)
            else:
                for value in cast("Iterable[object]", source):
                    self._room -= 2
                    copy.append(self._value(value, level + 1))
            if not copy:
                self._spend(2)
        if self._is_deep:
            raise InvalidUsageError(_TOO_DEEP)
        if self._is_huge:
            raise InvalidUsageError(_TOO_HUGE)
        return whole

    def _value(self, value: object, level: int) -> object:
        kind = type(value)
        if kind is list:  # the usual ones first: asking an abstract class takes long
            self._refuse_above(len(cast("list[object]", value)), _LEAST_OF_ITEM)
            return self._container(value, [], level)
        if kind is dict:
            self._refuse_above(len(cast("dict[object, object]", value)), _LEAST_OF_MEMBER)
            return self._container(value, {}, level)
        if kind is int:
            return self._integer(cast("int", value))
        if isinstance(value, str):
            return self._text(str.__str__(value))
        if value is None or isinstance(value, bool):
            self._spend(5 if value is False else 4)
            return value
        if isinstance(value, int):
            return self._integer(int.__index__(value))
        if isinstance(value, float):
            self._spend(written_size(value))
            return value
        if isinstance(value, list | tuple):
            return self._container(cast("object", value), [], level)
        if isinstance(value, Mapping):
            return self._container(cast("object", value), {}, level)
        if isinstance(value, Enum):
            return self._value(value.value, level)
        if isinstance(value, _TEXT_TYPES):
            return self._text(_text_of(value))
        reason = f"metadata: {kind_of(value)}; must be JSON values"
        raise InvalidUsageError(reason)

    def _container(
        self, value: object, copy: dict[str, object] | list[object], level: int
    ) -> object:
        if self._room < 0:
            raise InvalidUsageError(TOO_LARGE)
        self._waiting.append((value, copy, level))
        return copy

    def _inmost(self, value: object) -> object:
        """Spend what a list in a list in a list takes, the most levels that the limit allows."""
        if type(value) is not list:
            return value
        room = self._room
        items = cast("list[object]", value)
        while room >= 0 and len(items) == 1 and type(items[0]) is list:
            items = cast("list[object]", items[0])
            room -= 2
        self._room = room
        return items

    def _name(self, name: object) -> str:
        if isinstance(name, str):
            return self._text(str.__str__(name))
        if name is not None and not isinstance(name, int | float):
            reason = (
                "metadata: keys must be str, int, float, bool or None, "
                f"not {type(name).__name__}; must be JSON values"
            )
            raise InvalidUsageError(reason)
        if isinstance(name, int) and name.bit_length() > _DOUBLE_BITS:
            raise InvalidUsageError(_TOO_HUGE)
        if isinstance(name, float) and not math.isfinite(name):
            raise InvalidUsageError(_NO_NUMBER)
        return self._text(_encode(name))

    def _text(self, text: str) -> str:
        if len(text) <= self._room:
            quoted = _quoted(text)
            size = len(quoted) if quoted.isascii() else len(quoted.encode("utf-8", "surrogatepass"))
            self._spend(size)
        else:
            self._spend(len(text) + 2)
        return text

    def _integer(self, number: int) -> int:
        bits = number.bit_length()
        if bits <= _DOUBLE_BITS:
            self._spend(len(str(number)))
        else:  # about, and without writing it, which takes long
            self._spend(int(bits * math.log10(2)))
        if bits >= _DOUBLE_BITS and not -LARGEST_NUMBER <= number <= LARGEST_NUMBER:
            self._is_huge = True
        return number

    def _refuse_above(self, number: int, least: int) -> None:
        """Refuse so many at once where even the shortest would not fit."""
        if number * least > self._room:
            raise InvalidUsageError(TOO_LARGE)

    def _spend(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise InvalidUsageError(TOO_LARGE)


def written_size(number: float) -> int:
    """Return the characters of a number in jsonb, which has no exponents and no negative zero.

    Raises:
        InvalidUsageError: it is NaN or infinity.

    """
    if not math.isfinite(number):
        raise InvalidUsageError(_NO_NUMBER)
    text = float.__repr__(number)
    if number == 0:
        return 3
    return len(format(Decimal(text), "f")) if "e" in text else len(text)


def _refuse_unholdable(texts: Mapping[str, str], metadata_text: str) -> None:
    for field, text in texts.items():
        checked_holdable(field, text)
    for text in _texts(json.loads(metadata_text)):
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


class _Room:
    """How many characters of a refused payload are still kept, and whether some were not."""

    __slots__ = ("all_or_nothing", "is_cut", "left")

    def __init__(self, left: int, *, all_or_nothing: bool = False) -> None:
        self.left = left
        self.is_cut = False
        self.all_or_nothing = all_or_nothing

    def is_too_small_for(self, number: int) -> bool:
        if self.all_or_nothing and number * _KEPT_BESIDE_TEXT > self.left:
            self.is_cut = True
        return self.all_or_nothing and self.is_cut

    def beginning(self, text: str) -> str:
        if len(text) > self.left:
            self.is_cut = True
            text = text[: max(0, self.left)]
        self.left -= len(text)
        return text


def _plain(value: object, room: _Room, depth: int = 0) -> object:
    room.left -= _KEPT_BESIDE_TEXT
    kind = type(value)  # asking for a class takes long, and there can be thousands
    if value is None or kind is bool:
        return value
    if kind is str:
        return room.beginning(cast("str", value))
    if isinstance(value, str):
        return room.beginning(str.__str__(value))
    if isinstance(value, int):
        number = int.__index__(value)
        size = number.bit_length()
        return number if size < _LONG_INTEGER else f"an integer of {size} bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else float.__repr__(value)
    if isinstance(value, bytes | bytearray):
        return room.beginning(repr(bytes(value[: max(0, room.left)])))
    try:
        if depth < _DEEPEST_KEPT:
            if isinstance(value, Mapping):
                members = cast("Mapping[object, object]", value)
                if room.is_too_small_for(len(members)):
                    return None
                return _plain_mapping(members, room, depth)
            if isinstance(value, Sequence | set | frozenset):
                items = cast("Sequence[object]", value)
                if room.is_too_small_for(len(items)):
                    return None
                return _plain_items(items, room, depth)
        return room.beginning(_text_of(value))
    except Exception as error:  # noqa: BLE001  # of a value's own methods; the rest is kept
        return f"{kind_of(cast('object', value))}: {type(error).__name__}"


def _plain_mapping(value: Mapping[object, object], room: _Room, depth: int) -> dict[str, object]:
    kept: dict[str, object] = {}
    for name, content in value.items():
        if room.left <= 0:
            room.is_cut = True
            break
        kept[room.beginning(_text_of(name))] = _plain(content, room, depth + 1)
    return kept


def _plain_items(value: Iterable[object], room: _Room, depth: int) -> list[object]:
    kept: list[object] = []
    for content in value:
        if room.left <= 0:
            room.is_cut = True
            break
        kept.append(_plain(content, room, depth + 1))
    return kept


def _abridged(payload: object) -> dict[str, object]:
    fields: dict[object, object] = {"payload": payload}
    if isinstance(payload, Mapping):
        fields = dict(cast("Mapping[object, object]", payload))
    # What names the event first, wherever it stands.
    names = sorted(fields, key=lambda name: name not in _KNOWN and name != "call_id")
    kept = {_text_of(name)[:_SHORT_NAME]: _beginning(fields[name]) for name in names[:_KEPT_FIELDS]}
    return {**kept, "cut": f"more than {MAX_KEPT_BYTES} bytes: the beginnings of its fields"}


def _beginning(value: object) -> object:
    room = _Room(2 * _KEPT_OF_FIELD)
    plain = _plain(value, room)
    text = json.dumps(plain)
    if not room.is_cut and len(text) <= _KEPT_OF_FIELD:
        return plain
    return f"{text[:_KEPT_OF_FIELD]} ..."


def _text_of(value: object) -> str:
    """Return a value that JSON has not as text; of an unknown type, which can be long, its name."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if value is None or isinstance(value, UUID | Decimal | bool | float):
        return str(value)
    if isinstance(value, int):
        return str(int.__index__(value)) if value.bit_length() < _LONG_INTEGER else "an integer"
    return kind_of(value)


_encode: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False
).encode
