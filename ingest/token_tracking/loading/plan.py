"""Turns the rows of files into events: columns, constants, time zone and keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from ..client.delivery import MAX_BATCH
from ..errors import InvalidUsageError, LoadError
from ..event.fields import EVENT_FIELDS, NO_TOKENS, PARTS, TEXT_FIELDS, TOKEN_FIELDS
from ..event.kept import keepable
from ..event.labels import OPERATION_QUERY, TOKEN_TYPE_LLM
from ..event.rules import occurred_at_of, to_wire
from .cells import Texts, value_of
from .formats.export import LONGEST_LINE, event_rows
from .ordinals import Ordinals
from .rows import BadRow, csv_header, csv_rows, json_rows, shown_names
from .source import Format

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from .formats.export import Export
    from .rows import Row
    from .source import Lines, Source

_TYPED: Final = ("occurred_at", *TOKEN_FIELDS, "metadata")

_canonical: Final = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False
).encode


class Accepted(NamedTuple):
    """An event in its wire format, and its 1-based line.

    `is_named` if the row itself has a key, `is_timed` if it has a time.
    """

    line: int
    payload: bytes
    is_named: bool = False
    is_timed: bool = True


class Refused(NamedTuple):
    """A row that is not a valid event: its line, the JSON to keep, and the reason."""

    line: int
    payload: bytes
    reason: str


def time_of(event: Accepted) -> bytes:
    """Return the event's `occurred_at` in the wire format, which sorts by time."""
    return occurred_at_of(event.payload)


def key_of(event: Accepted) -> str:
    """Return the event's idempotency key."""
    return cast("dict[str, str]", json.loads(event.payload))["idempotency_key"]


class PlannedRows(NamedTuple):
    """The rows of a source, and notes about the source as a whole."""

    rows: Iterator[Row | BadRow]
    notes: list[str]


@dataclass(frozen=True)
class Plan:
    """The options by which rows become events.

    `columns` maps fields to CSV columns; a column named like a field need not be listed.
    `constants` are values for every row and override the row's own. `timezone` applies to times
    without an offset. `source` distinguishes files that may hold equal rows. `nulls` are the texts
    that mean an empty cell. `is_whole` says that the files are complete, so that a last line
    without a line end is a row. `export` is the program that wrote the files; `columns` then may
    name any member of its records, and override what it says.
    """

    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    constants: Mapping[str, object] = field(default_factory=dict[str, object])
    timezone: tzinfo = UTC
    source: str = ""
    nulls: Collection[str] = ()
    is_whole: bool = False
    export: Export | None = None

    def check(self, sources: Sequence[Source]) -> None:
        """Check the options and the first line of every file before anything is loaded.

        Raises:
            LoadError: options contradict each other, or one of the files cannot be loaded.

        """
        if both := sorted(self.columns.keys() & self.constants.keys()):
            message = f"{both[0]} is given by --columns and by --set: leave one out"
            raise LoadError(message)
        for source in sources:
            if self.columns and source.format is not Format.CSV and self.export is None:
                message = f"{source.name}: --columns is for CSV, JSON lines use the fields' names"
                raise LoadError(message)
            if source.can_be_read_again:
                with self.open(source) as lines:
                    rows = self.rows(source, lines).rows
                    if self.export is not None:
                        next(rows, None)  # which tells whether it is such an export

    def open(self, source: Source) -> Lines:
        """Open a source, as a context manager.

        Raises:
            LoadError: it cannot be opened, or is not UTF-8 text.

        """
        return source.open() if self.export is None else source.open(LONGEST_LINE)

    def rows(self, source: Source, lines: Lines) -> PlannedRows:
        """Return the rows of an opened source, with their values by field.

        Raises:
            LoadError: the source cannot be loaded.

        """
        if self.export is not None:
            return self._exported_rows(self.export, source, lines)
        if source.format is not Format.CSV:
            return PlannedRows(json_rows(lines, is_whole=self.is_whole), _empty(lines))
        header = csv_header(lines)
        columns = self._columns_of(source.name, header)
        rows = csv_rows(lines, header, columns, is_whole=self.is_whole)
        notes: list[str] = []
        if unused := [name for name in header if name not in columns.values()]:
            notes.append(f"columns not used: {shown_names(unused)}")
        if "occurred_at" not in columns and "occurred_at" not in self.constants:
            notes.append("no occurred_at: these events count at the time when they are loaded")
        return PlannedRows(rows, notes)

    def _exported_rows(self, export: Export, source: Source, lines: Lines) -> PlannedRows:
        if not (export.has_tenant or "tenant_id" in {*self.columns, *self.constants}):
            raise _no_tenant(source.name)
        if source.format is Format.CSV:
            rows = self._exported_csv_rows(export, lines)
        else:
            rows = json_rows(lines, is_whole=self.is_whole, may_be_arrays=True)
        events = event_rows(export, rows, lines, self.columns, self.constants.keys())
        return PlannedRows(events, _empty(lines))

    def _exported_csv_rows(self, export: Export, lines: Lines) -> Iterator[Row | BadRow]:
        if not export.is_csv:
            message = f"{lines.name}: {export.name} does not write CSV: say --format jsonl"
            raise LoadError(message)
        header = csv_header(lines)
        for field_name, path in self.columns.items():
            if not any(path == name or path.startswith(f"{name}.") for name in header if name):
                message = (
                    f"{lines.name} has no column {path!r} for {field_name}; "
                    f"its header is: {shown_names(header)}"
                )
                raise LoadError(message, line=1)
        once = [name for name in header if name and header.count(name) == 1]
        columns = {name: name for name in (*once, *export.names)}
        return csv_rows(lines, header, columns, is_whole=self.is_whole)

    def events(
        self, source: Source, rows: Sequence[Row | BadRow], ordinals: Ordinals, texts: Texts
    ) -> Iterator[Accepted | Refused]:
        """Yield the next rows of a source, in order, as events or refused rows.

        The key of a row without one is the SHA-256 of `source`, the row's values and its ordinal
        among equal rows of the file. Constants, time zone and file name are not part of it: so a
        row that is loaded again with another one of these is known and not counted twice. The
        values are the unchanged cells, including outer space and texts that mean an empty cell.
        """
        now = datetime.now(UTC)
        constants = self.constants
        typed = _TYPED if source.format is Format.CSV or self.export else _TYPED[:1]
        typed = tuple(name for name in typed if name not in constants)
        known = {name: texts.known[name] for name in TEXT_FIELDS if name not in constants}
        for row, key in zip(rows, self._keys(rows, ordinals, texts), strict=True):
            try:
                if isinstance(row, BadRow):
                    raise InvalidUsageError(row.reason)
                cells = texts.without_nulls(row.fields) if texts.nulls else row.fields
                fields = {**cells, **constants}
                for name, text in cells.items():
                    if name in known and type(text) is str:
                        cleaned = known[name].get(text)
                        if cleaned is None:
                            cleaned = texts.of(name, text, row.line)
                        fields[name] = cleaned or None
                for name in typed:
                    text = cells.get(name)
                    if text is not None:
                        fields[name] = value_of(name, text, self.timezone)
                if key is not None:
                    fields["idempotency_key"] = key
                get = fields.get
                tokens = get("tokens")
                is_empty = tokens is None and all(get(part) is None for part in PARTS["tokens"])
                # The same default that the rules would apply: this keeps to their fast path.
                if tokens is None and not is_empty:
                    fields["tokens"] = 0
                if get("token_type") is None:
                    fields["token_type"] = TOKEN_TYPE_LLM
                if get("operation") is None:
                    fields["operation"] = OPERATION_QUERY
                payload = to_wire(fields, now).payload
                if is_empty:
                    raise InvalidUsageError(NO_TOKENS)
                yield Accepted(row.line, payload, key is None, get("occurred_at") is not None)
            except InvalidUsageError as error:
                given = self._given(row, key)
                yield Refused(row.line, keepable(given), _reason(error.reason, given))

    def timed_keys(self, source: Source) -> Iterator[tuple[str, str]]:
        """Yield the time and the key of each event of a whole file, in the form of the payloads.

        Raises:
            LoadError: the file cannot be read.

        """
        texts = Texts(self.nulls)
        with self.open(source) as lines, Ordinals() as ordinals:
            rows, _ = self.rows(source, lines)
            while chunk := list(islice(rows, MAX_BATCH)):
                for event in self.events(source, chunk, ordinals, texts):
                    if isinstance(event, Accepted):
                        yield time_of(event).decode(), key_of(event)

    def _given(self, row: Row | BadRow, key: str | None) -> dict[str, object]:
        """Return a row's unchanged values, with the constants and its key."""
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
            raise _no_tenant(name)
        if told.isdisjoint(("tokens", *PARTS["tokens"])):
            message = (
                f"{name} says no tokens: name their columns with "
                "--columns input_tokens=...,output_tokens=... or --columns tokens=..."
            )
            raise LoadError(message)
        return columns

    def _keys(
        self, rows: Sequence[Row | BadRow], ordinals: Ordinals, cleaned: Texts
    ) -> list[str | None]:
        """Return a new key for each row; None if the row has one."""
        texts: list[bytes | None] = []
        unhashed = self.constants.keys() | {"idempotency_key"}  # which is empty here
        for row in rows:
            if isinstance(row, BadRow):
                values: object = row.text
            elif "idempotency_key" in row.fields and not cleaned.is_empty(
                row.fields["idempotency_key"]
            ):
                texts.append(None)
                continue
            elif unhashed.isdisjoint(row.fields):
                values = row.fields
            else:
                values = {name: value for name, value in row.fields.items() if name not in unhashed}
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


def _no_tenant(name: str) -> LoadError:
    return LoadError(
        f"{name} says no tenant_id: name its column with --columns tenant_id=..., "
        "or give --set tenant_id=... for all rows"
    )


def _empty(lines: Lines) -> list[str]:
    return ["it is empty"] if lines.is_empty else []


def _reason(reason: str, given: Mapping[str, object]) -> str:
    name = reason.partition(":")[0]
    text = given.get(name)
    # The decoder turns bytes that are not UTF-8 into these characters.
    if isinstance(text, str) and any("\udc80" <= character <= "\udcff" for character in text):
        return f"{name}: bytes that are not UTF-8; must be UTF-8 text"
    return reason
