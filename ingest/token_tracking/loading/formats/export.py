"""Turns the rows of a program's export into rows of events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from ...errors import InvalidUsageError, LoadError
from ...event.fields import EVENT_FIELDS
from ..cells import instant_of
from ..rows import BadRow, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from ...responses.usage import ResponseUsage
    from ..source import Lines

# A line may hold what people wrote and read, or a batch of spans.
LONGEST_LINE: Final = 64 * 1024 * 1024
_NO_TIME: Final = (
    "occurred_at: missing; must be in the file, or given with --set or --columns occurred_at=..."
)


class LeftOut(NamedTuple):
    """Why a record is no usage, as a plural that is counted: "cache hits"."""

    what: str


class OtherRecordError(InvalidUsageError):
    """A record is none of this export's, so the file may be another program's."""


def _itself(row: Mapping[str, object]) -> Iterable[Mapping[str, object]]:
    return (row,)


class Export(NamedTuple):
    """How the export of one program is read.

    `event_of` makes the event of a record, with its key; it raises `OtherRecordError` if it does
    not know the record, else `InvalidUsageError` if it cannot. `names` are the members that
    identify a record, which a CSV file must have as columns. Without `is_csv`, it is JSON only.
    `has_tenant` if its records may tell the tenant. `records` splits a row into records.
    """

    name: str
    event_of: Callable[[Mapping[str, object]], dict[str, object] | LeftOut]
    names: tuple[str, ...]
    is_csv: bool = False
    has_tenant: bool = True
    records: Callable[[Mapping[str, object]], Iterable[Mapping[str, object]]] = _itself


def event_rows(
    export: Export,
    rows: Iterator[Row | BadRow],
    lines: Lines,
    columns: Mapping[str, str],
    constants: Collection[str],
) -> Iterator[Row | BadRow]:
    """Yield a row for each usage event of the export; count what is left out.

    `columns` say where a field is instead: a member of the record, or a path to one with dots.
    `constants` are the fields that need not be in the file. Of what is refused, only the members
    that identify it are kept: the rest may be what people wrote.

    Raises:
        LoadError: the first record is not one of this export, or is more than a line.

    """
    is_first = True
    for row in rows:
        if isinstance(row, BadRow):
            if is_first and row.text in {"[", "{"}:
                message = (
                    f"{lines.name} is JSON over several lines: "
                    "jq -c . FILE | token-tracking load - --format jsonl"
                )
                raise LoadError(message, line=row.line)
            is_first = False
            digest = sha256(row.text.encode("utf-8", "surrogatepass")).hexdigest()
            yield row._replace(text=f"its SHA-256 is {digest}")
            continue
        for record in export.records(row.fields):
            try:
                event = export.event_of(record)
                if isinstance(event, LeftOut):
                    lines.leave_out(event.what, row.line)
                    continue
                for field, path in columns.items():
                    event[field] = at(record, path)
                if event.get("occurred_at") is None and "occurred_at" not in constants:
                    raise InvalidUsageError(_NO_TIME)
            except InvalidUsageError as error:
                if is_first and isinstance(error, OtherRecordError):
                    message = (
                        f"{lines.name}, line {row.line}: not from {export.name}: {error.reason}"
                    )
                    raise LoadError(message, line=row.line) from error
                names = {name: record.get(name) for name in export.names}
                yield BadRow(row.line, json.dumps(names, default=str), error.reason)
            else:
                yield Row(row.line, {name: v for name, v in event.items() if v is not None})
            finally:
                is_first = False


def event_of_usage(usage: ResponseUsage, **others: object) -> dict[str, object]:
    """Return the event of what `usage_of` read, with other fields."""
    event = {name: value for name, value in usage._asdict().items() if name in EVENT_FIELDS}
    if usage.note is not None:
        metadata = cast("dict[str, object]", others.get("metadata") or {})
        others["metadata"] = {**metadata, "usage_note": usage.note}
    return {**event, **others}


def at(record: object, path: str) -> object:
    """Return the member of that name, or else the one at a path with dots; None if it is absent.

    JSON in a cell is read, too.
    """
    record = parsed(record)
    if not isinstance(record, Mapping):
        return None
    members = cast("Mapping[str, object]", record)
    if path in members:
        return members[path]
    name, dot, rest = path.partition(".")
    while dot:
        if name in members:
            found = at(members[name], rest)
            if found is not None:
                return found
        more, dot, rest = rest.partition(".")
        name = f"{name}.{more}"
    return None


def first_at(record: Mapping[str, object], *paths: str) -> object:
    """Return what is at the first path that leads to something other than an empty text."""
    found = (at(record, path) for path in paths)
    return next((value for value in found if value is not None and value != ""), None)


def parsed(value: object) -> object:
    """Return the object of a cell that holds its JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        try:
            return cast("object", json.loads(value))
        except (ValueError, RecursionError):
            return value
    return value


def count(value: object) -> object:
    """Return the number of a cell that holds one; anything else as it is, for the rules."""
    if isinstance(value, str) and value.isascii() and value.strip().isdigit():
        return int(value.strip()[:20])
    return value


def instant(value: object) -> str | None:
    """Return a time, which is in UTC if it does not tell, as ISO 8601; other text as it is."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = repr(value)
    if not isinstance(value, str) or not value.strip():
        return None
    found = instant_of(value, UTC)
    return found.isoformat() if isinstance(found, datetime) else found
