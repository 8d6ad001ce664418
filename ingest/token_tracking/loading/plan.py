"""How the rows of files become events: columns, constants, time zone and keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import InvalidUsageError, LoadError
from ..rules import EVENT_FIELDS, keepable, to_wire
from .cells import value_of
from .rows import BadRow, csv_header, csv_rows, json_rows, shown_names
from .source import Format

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .ordinals import Ordinals
    from .rows import Row
    from .source import Lines, Source

_TYPED: Final = ("occurred_at", "tokens", "input_tokens", "output_tokens", "metadata")

_canonical: Final = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False
).encode


class Accepted(NamedTuple):
    """An event as it is sent, and the 1-based line that it stands on."""

    line: int
    payload: bytes


class Refused(NamedTuple):
    """A row that is no event: its line, what is kept of it as JSON, and why."""

    line: int
    payload: bytes
    reason: str


class PlannedRows(NamedTuple):
    """The rows of a source, and what people should know of it."""

    rows: Iterator[Row | BadRow]
    notes: list[str]


@dataclass(frozen=True)
class Plan:
    """How rows become events.

    `columns` are CSV columns by field; columns named like a field need no mention. `constants` hold
    for every row, whatever it says itself. `timezone` is that of times without offset. `source`
    separates files that may hold equal rows.
    """

    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    constants: Mapping[str, object] = field(default_factory=dict[str, object])
    timezone: tzinfo = UTC
    source: str = ""

    def check(self, sources: Sequence[Source]) -> None:
        """Look at the options and the first line of every file before anything is loaded.

        Raises:
            LoadError: options contradict each other, or one of the files cannot be loaded.

        """
        if both := sorted(self.columns.keys() & self.constants.keys()):
            message = f"{both[0]} is given by --columns and by --set: leave one out"
            raise LoadError(message)
        for source in sources:
            if self.columns and source.format is not Format.CSV:
                message = f"{source.name}: --columns is for CSV, JSON lines use the fields' names"
                raise LoadError(message)
            if source.can_be_read_again:
                with source.open() as lines:
                    self.rows(source, lines)

    def rows(self, source: Source, lines: Lines) -> PlannedRows:
        """Return the rows of an opened source, by the fields of an event.

        Raises:
            LoadError: the source cannot be loaded.

        """
        if source.format is not Format.CSV:
            return PlannedRows(json_rows(lines), ["it is empty"] if lines.is_empty else [])
        header = csv_header(lines)
        columns = self._columns_of(source.name, header)
        rows = csv_rows(lines, header, columns)
        notes: list[str] = []
        if unused := [name for name in header if name not in columns.values()]:
            notes.append(f"columns not used: {shown_names(unused)}")
        if "occurred_at" not in columns and "occurred_at" not in self.constants:
            notes.append("no occurred_at: these events count at the time when they are loaded")
        return PlannedRows(rows, notes)

    def events(
        self, source: Source, rows: Sequence[Row | BadRow], ordinals: Ordinals
    ) -> Iterator[Accepted | Refused]:
        """Return what becomes of the next rows of a source, in order.

        The key of a row without one is the sha256 of `source`, its own values and its ordinal among
        equal rows of the file: not of constants, time zone or file name, so that a row which is
        loaded again with another of them is known and not counted twice.
        """
        now = datetime.now(UTC)
        typed = _TYPED if source.format is Format.CSV else _TYPED[:1]
        for row, key in zip(rows, self._keys(rows, ordinals), strict=True):
            try:
                if isinstance(row, BadRow):
                    raise InvalidUsageError(row.reason)
                fields = self._given(row, key)
                for name in typed:
                    text = row.fields.get(name)
                    if text is not None and name not in self.constants:
                        fields[name] = value_of(name, text, self.timezone)
                yield Accepted(row.line, to_wire(fields, now).payload)
            except InvalidUsageError as error:
                given = self._given(row, key)
                yield Refused(row.line, keepable(given), _reason(error.reason, given))

    def _given(self, row: Row | BadRow, key: str | None) -> dict[str, object]:
        """Return what a row says, as it says it, with its constants and key."""
        given: dict[str, object] = (
            {"line": row.text} if isinstance(row, BadRow) else {**row.fields, **self.constants}
        )
        if key is not None:
            given["idempotency_key"] = key
        return given

    def _columns_of(self, name: str, header: Sequence[str]) -> dict[str, str]:
        columns = {
            field: self.columns.get(field, field)
            for field in sorted(EVENT_FIELDS)
            if field in self.columns or (field in header and field not in self.constants)
        }
        told = columns.keys() | self.constants.keys()
        if "tenant_id" not in told:
            message = (
                f"{name} says no tenant_id: name its column with --columns tenant_id=..., "
                "or give --set tenant_id=... for all rows"
            )
            raise LoadError(message)
        if not told & {"tokens", "input_tokens", "output_tokens"}:
            message = (
                f"{name} says no tokens: name their columns with "
                "--columns input_tokens=...,output_tokens=... or --columns tokens=..."
            )
            raise LoadError(message)
        return columns

    def _keys(self, rows: Sequence[Row | BadRow], ordinals: Ordinals) -> list[str | None]:
        """Return the key that each row gets; None where it has its own."""
        texts: list[bytes | None] = []
        for row in rows:
            if isinstance(row, BadRow):
                values: object = row.text
            elif "idempotency_key" in row.fields:
                texts.append(None)
                continue
            elif self.constants.keys().isdisjoint(row.fields):
                values = row.fields
            else:
                values = {
                    name: value for name, value in row.fields.items() if name not in self.constants
                }
            texts.append(_canonical([self.source, values]).encode("utf-8", "surrogatepass"))
        fingerprints = [
            int.from_bytes(sha256(text).digest()[:8], "big", signed=True)
            for text in texts
            if text is not None
        ]
        counted = iter(ordinals.take(fingerprints))
        return [
            None if text is None else sha256(b"%b#%d" % (text, next(counted))).hexdigest()
            for text in texts
        ]


def _reason(reason: str, given: Mapping[str, object]) -> str:
    name = reason.partition(":")[0]
    text = given.get(name)
    # What the file's decoding makes of bytes that are not UTF-8.
    if isinstance(text, str) and any("\udc80" <= character <= "\udcff" for character in text):
        return f"{name}: bytes that are not UTF-8; must be UTF-8 text"
    return reason
