"""Values of an event out of text, as cells of a CSV file and options of a command hold it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ..errors import InvalidUsageError, LoadError
from ..rules import EVENT_FIELDS, MAX_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

_INTEGER: Final = re.compile(r"[+-]?[0-9]+", re.ASCII)
_DIGITS_OF_ANY_INTEGER: Final = 20
_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?", re.ASCII
)
_COMMA: Final = re.compile(r"(?<!\\),")
_METADATA: Final = re.compile(r"(?:^|(?<!\\),)\s*metadata=")


def value_of(field: str, text: object, zone: tzinfo) -> object:
    """Return what a cell says of a field, as the rules take it; what is no text stays as it is.

    Raises:
        InvalidUsageError: the text cannot be such a value; the reason does not show it.

    """
    if not isinstance(text, str):
        return text
    if field == "occurred_at":
        return instant_of(text, zone)
    if field in {"tokens", "input_tokens", "output_tokens"}:
        return _integer_of(field, text)
    if field == "metadata":
        return _object_of(text)
    return text


def instant_of(text: str, zone: tzinfo) -> datetime | str:
    """Return the time that a text says, or the text itself where the rules have to refuse it.

    A time without UTC offset is one of `zone`. One that its clocks show twice is the first of the
    two; one that they skip is read with the offset before the change (02:30 becomes 03:30): the
    rule of RFC 5545, 3.3.5. Digits past microseconds are cut.
    """
    text = text.strip()
    if _TIME.fullmatch(text) is None:
        return text
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return text
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=zone)


def _integer_of(field: str, text: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    if _INTEGER.fullmatch(text) is None:
        reason = f"{field}: text that is no integer; must be an integer from 0 to {MAX_TOKENS}"
        raise InvalidUsageError(reason)
    # Longer ones are out of range whatever they are; Python refuses to convert some of them.
    return int(text[:_DIGITS_OF_ANY_INTEGER]) if text.strip("+-0") else 0


def _object_of(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "metadata: text that is no JSON; must be an object"
        raise InvalidUsageError(reason) from error


def zone_of(name: str) -> tzinfo:
    """Return the IANA time zone of a name.

    Raises:
        LoadError: there is none.

    """
    if name.upper() == "UTC":
        return UTC  # needs no time zone database
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        message = (
            f"{name!r} is no time zone that this machine knows: an IANA name, as Europe/Berlin "
            "(pip install tzdata where the system has no time zones)"
        )
        raise LoadError(message) from error


def columns_of(options: Sequence[str]) -> dict[str, str]:
    r"""Return the column of each field from options like `occurred_at=TIMESTAMP,tokens=Total`.

    A comma in a name is written `\,`.

    Raises:
        LoadError: a field is none, or has two columns, or a column has two fields.

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
        LoadError: a field is none, is given twice, or cannot have this value.

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
            f"{option}: {text!r} is no field=... (a comma inside a name or value is written \\,)"
        )
        raise LoadError(message)
    if field not in EVENT_FIELDS:
        message = f"{option}: {field!r} is no field of an event; it has {', '.join(EVENT_FIELDS)}"
        raise LoadError(message)
    if not value:
        message = f"{option}: {field} is given nothing"
        raise LoadError(message)
    return field, value.replace("\\,", ",")
