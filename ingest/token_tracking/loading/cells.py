"""Parses an event's values from text: the cells of a CSV file and the options of a command."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ..errors import InvalidUsageError, LoadError
from ..event.fields import EVENT_FIELDS, MAX_TEXT, MAX_TOKENS, TEXT_FIELDS, TOKEN_FIELDS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

_INTEGER: Final = re.compile(r"[+-]?[0-9]+", re.ASCII)
_DIGITS_OF_ANY_INTEGER: Final = 20
_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?", re.ASCII
)
# Times as other programs write them: ISO 8601's basic form, any case, a space before the offset,
# UTC by name (twice, in Go), and 24:00 for the end of the day.
_OTHER_TIME: Final = re.compile(
    r"(?P<year>\d{4})-?(?P<month>\d\d)-?(?P<day>\d\d)[T ](?P<hour>\d\d):?(?P<minute>\d\d)"
    r"(:?(?P<second>\d\d)(?P<fraction>\.\d+)?)?"
    r" ?(?P<offset>Z|[+-]\d\d(:?\d\d)?)?( ?(?P<utc>UTC|GMT))?",
    re.ASCII,
)
# Seconds since 1970 have 9 or 10 digits from 1973 to 2286, milliseconds 12 or 13.
_SINCE_1970: Final = re.compile(r"(\d{9,10}|\d{12,13})(?:\.(\d+))?", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_SECONDS_DIGITS: Final = 10
# What programs write for a missing value. No tenant or agent has such a name by chance.
_NO_VALUE: Final = frozenset({"nan", "null", "none", "n/a", "#n/a", "<na>", "\\n", "undefined"})
_MOST_REMEMBERED: Final = 10_000
_UUID: Final = re.compile(
    r"(urn:uuid:)?\{?[0-9a-f]{8}(-?)[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{12}\}?",
    re.ASCII | re.IGNORECASE,
)
_USUAL_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_HEX: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_COMMA: Final = re.compile(r"(?<!\\),")
_METADATA: Final = re.compile(r"(?:^|(?<!\\),)\s*metadata=")


class Texts:
    """Converts the texts of one file to what the rules accept, and notes unusual spellings.

    Outer space is removed. `nulls` are the texts that mean an empty cell. If it is empty, the texts
    that programs write for a missing value are refused, as they would become the name of a tenant
    or an agent. `known` caches the results of `of` by field and text.
    """

    def __init__(self, nulls: Collection[str] = ()) -> None:
        self.unusual_ids: dict[str, int] = {}  # field: first line
        self.nulls = frozenset(nulls)
        self.known: dict[str, dict[str, str]] = {field: {} for field in TEXT_FIELDS}

    def of(self, field: str, text: str, line: int) -> str:
        """Return a cell's text, "" if the cell is empty.

        Raises:
            InvalidUsageError: the text means a missing value.

        """
        known = self.known[field]
        cleaned = text.strip()
        if not self.nulls and cleaned.casefold() in _NO_VALUE:
            reason = (
                f"{field}: text that means a missing value; "
                "must be a name: --null TEXT says which cells are empty"
            )
            raise InvalidUsageError(reason)
        if field in {"tenant_id", "agent_id", "idempotency_key"} and _is_unusual(field, cleaned):
            self.unusual_ids.setdefault(field, line)
        if len(text) <= MAX_TEXT:
            if len(known) >= _MOST_REMEMBERED:
                known.clear()
            known[text] = cleaned
        return cleaned

    def without_nulls(self, fields: Mapping[str, object]) -> dict[str, object]:
        """Return a row's fields without those whose text means an empty cell."""
        return {name: value for name, value in fields.items() if not self.is_empty(value)}

    def is_empty(self, value: object) -> bool:
        """Return whether a cell's value is only space, or a text that means an empty cell."""
        if not isinstance(value, str):
            return False
        text = value.strip()
        return not text or text in self.nulls


def _is_unusual(field: str, text: str) -> bool:
    """Return whether a text is a UUID in another form than most programs write."""
    if _UUID.fullmatch(text) is None or _USUAL_UUID.fullmatch(text) is not None:
        return False
    # A key of 32 hexadecimal digits is a hash or a trace id, not a UUID.
    return field != "idempotency_key" or _HEX.fullmatch(text) is None


def value_of(field: str, text: object, zone: tzinfo) -> object:
    """Parse a cell's text into a value that the rules accept; other values are returned as is.

    Raises:
        InvalidUsageError: the text is not valid for the field; the reason does not show it.

    """
    if not isinstance(text, str):
        if field == "occurred_at" and isinstance(text, int | float) and not isinstance(text, bool):
            return instant_of(repr(text), zone)  # JSON's seconds since 1970
        return text
    if field == "occurred_at":
        return instant_of(text, zone)
    if field in TOKEN_FIELDS:
        return _integer_of(field, text)
    if field == "metadata":
        return _object_of(text)
    return text


def instant_of(text: str, zone: tzinfo) -> datetime | str:
    """Parse a time; return the text itself if it is not a time, for the rules to refuse.

    A time without a UTC offset is in `zone`. Of a local time that occurs twice, the first one is
    meant; one that is skipped is read with the offset before the change (02:30 becomes 03:30), as
    RFC 5545, 3.3.5, says. Digits beyond microseconds are cut off. A number is seconds since 1970,
    or milliseconds if it has that many digits.
    """
    text = text.strip()
    if _TIME.fullmatch(text) is None:
        return _other_instant_of(text, zone)
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return _other_instant_of(text, zone)
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=zone)


def _other_instant_of(text: str, zone: tzinfo) -> datetime | str:
    if number := _SINCE_1970.fullmatch(text):
        whole, fraction = number[1], number[2] or ""
        unit = (
            6 if len(whole) <= _MOST_SECONDS_DIGITS else 3
        )  # decimal places from the unit to microseconds
        micros = int(whole + fraction[:unit].ljust(unit, "0"))
        return _EPOCH + timedelta(microseconds=micros)
    match = _OTHER_TIME.fullmatch(text.upper())
    if match is None:
        return text
    offset = match["offset"]
    if match["utc"] and offset and offset.strip("Z+-0:"):
        return text  # two offsets
    clock = f"{match['hour']}:{match['minute']}:{match['second'] or '00'}{match['fraction'] or ''}"
    is_end_of_day = clock.startswith("24:") and not clock[3:].strip("0:.")
    if is_end_of_day:
        clock = "00:00:00"
    iso = f"{match['year']}-{match['month']}-{match['day']}T{clock}"
    try:
        instant = datetime.fromisoformat(iso + ("Z" if match["utc"] else offset or ""))
        if is_end_of_day:
            instant += timedelta(days=1)
    except (ValueError, OverflowError):
        return text
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=zone)


def _integer_of(field: str, text: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    if _INTEGER.fullmatch(text) is None:
        reason = f"{field}: text that is not an integer; must be an integer from 0 to {MAX_TOKENS}"
        raise InvalidUsageError(reason)
    # Longer integers are out of range anyway, and Python refuses to convert very long ones.
    return int(text[:_DIGITS_OF_ANY_INTEGER]) if text.strip("+-0") else 0


def _object_of(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "metadata: text that is not JSON; must be an object"
        raise InvalidUsageError(reason) from error


def zone_of(name: str) -> tzinfo:
    """Return the time zone with an IANA name.

    Raises:
        LoadError: there is no such time zone.

    """
    if name.upper() == "UTC":
        return UTC  # needs no time zone database
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        message = (
            f"{name!r} is not a time zone that this machine knows: use an IANA name, such as "
            "Europe/Berlin (pip install tzdata if the system has no time zones)"
        )
        raise LoadError(message) from error


def columns_of(options: Sequence[str]) -> dict[str, str]:
    r"""Return the column of each field from options like `occurred_at=TIMESTAMP,tokens=Total`.

    A comma in a name is written `\,`.

    Raises:
        LoadError: a field is unknown or has two columns, or a column has two fields.

    """
    columns: dict[str, str] = {}
    for option in options:
        for part in _COMMA.split(option):
            field, column = _assignment("--columns", part)
            if field in columns:
                message = f"--columns: {field} is given twice"
                raise LoadError(message)
            column = column.strip()
            if column in columns.values():
                message = f"--columns: column {column!r} is given twice"
                raise LoadError(message)
            columns[field] = column
    return columns


def constants_of(options: Sequence[str], zone: tzinfo) -> dict[str, object]:
    r"""Return the value of each field from options like `tenant_id=acme,model=gpt-4o`.

    A comma in a value is written `\,`, but `metadata=` takes the rest of its option as JSON.

    Raises:
        LoadError: a field is unknown, is given twice, or cannot have this value.

    """
    constants: dict[str, object] = {}
    for option in options:
        found = _METADATA.search(option)
        before = option[: found.start()] if found else option
        parts = _COMMA.split(before) if before else []
        for part in [*parts, *([f"metadata={option[found.end() :]}"] if found else [])]:
            field, text = _assignment("--set", part)
            if field == "idempotency_key":
                message = "--set: idempotency_key would be the same for every row, and so one event"
                raise LoadError(message)
            if field in constants:
                message = f"--set: {field} is given twice"
                raise LoadError(message)
            try:
                constants[field] = value_of(field, text, zone)
            except InvalidUsageError as error:
                message = f"--set: {error.reason}"
                raise LoadError(message) from error
    return constants


def _assignment(option: str, text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    field = field.strip()
    if not equals:
        message = (
            f"{option}: {text!r} is not of the form field=... "
            "(a comma inside a name or value is written \\,)"
        )
        raise LoadError(message)
    if field not in EVENT_FIELDS:
        message = (
            f"{option}: {field!r} is not a field of an event; it has {', '.join(EVENT_FIELDS)}"
        )
        raise LoadError(message)
    if not value:
        message = f"{option}: {field} is given nothing"
        raise LoadError(message)
    return field, value.replace("\\,", ",")
