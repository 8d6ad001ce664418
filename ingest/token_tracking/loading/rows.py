"""Reads rows from CSV and JSON lines; a bad row never stops the others, and memory is bounded."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from ..errors import LoadError
from ..event.values import kind_of
from .source import LineTooLongError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .source import Lines

KEPT_OF_A_LONG_LINE: Final = 1000
_NAMES_SHOWN: Final = 20
# Levels of recursion that later steps may need in addition to the reader's: what was read has to be
# written again.
_ROOM: Final = 50
_BLANK: Final = " \t\n\r\f\v\x1a"  # including Ctrl-Z, which ends DOS files
_BROKEN_QUOTES: Final = "line: quotes that do not match; must be CSV"


class Row(NamedTuple):
    """One row: its 1-based first line and its non-empty fields."""

    line: int
    fields: dict[str, object]


class BadRow(NamedTuple):
    """A line that is not a row: its 1-based number, its text, and the rule that it breaks."""

    line: int
    text: str
    reason: str


def json_rows(
    lines: Lines, *, is_whole: bool, may_be_arrays: bool = False
) -> Iterator[Row | BadRow]:
    """Yield the objects of JSON lines; empty lines and null fields count as absent.

    A last line without a line end is a row if it is a complete object, since no prefix of an object
    is one. Anything else is left unread unless the file `is_whole`. If lines `may_be_arrays`, the
    objects in them are rows, too.
    """
    while True:
        lines.begin()
        try:
            line = next(lines)
        except StopIteration:
            return
        except LineTooLongError as error:
            yield _too_long(lines, error)
            continue
        text = line.strip(_BLANK)
        if not text:
            continue
        try:
            value: object = json.loads(text)
            if text.count("[") + text.count("{") > _ROOM:
                json.loads("[" * _ROOM + text + "]" * _ROOM)
        except json.JSONDecodeError as error:
            if not is_whole and lines.is_cut():
                lines.unread = lines.number
                return
            yield BadRow(
                lines.number, text, f"line: no JSON at column {error.colno}; must be an object"
            )
            continue
        except (RecursionError, ValueError):
            yield BadRow(lines.number, text, "line: JSON beyond all limits; must be an object")
            continue
        values: list[object] = [value]
        if may_be_arrays and isinstance(value, list):
            values = cast("list[object]", value)
        for each in values:
            if isinstance(each, dict):
                fields = cast("dict[str, object]", each)
                present = {name: field for name, field in fields.items() if field is not None}
                yield Row(lines.number, present)
            else:
                yield BadRow(lines.number, text, f"line: {kind_of(each)}; must be an object")


def csv_header(lines: Lines) -> list[str]:
    """Read the header row and return the column names.

    Raises:
        LoadError: the file is empty or its header cannot be read.

    """
    for record in _csv_records(lines):
        if isinstance(record, BadRow):
            message = f"{lines.name} has no header that can be read: {record.reason}"
            raise LoadError(message, line=record.line)
        return [name.strip() for name in record[1]]
    message = f"{lines.name} is empty: its first line must name the columns"
    raise LoadError(message)


def csv_rows(
    lines: Lines, header: Sequence[str], columns: dict[str, str], *, is_whole: bool
) -> Iterator[Row | BadRow]:
    """Yield the rows after the header; skips rows that hold only space.

    Args:
        lines: the lines after the header.
        header: the names of all columns.
        columns: the column of each field.
        is_whole: the file is complete. Otherwise a last row without a line end, or with an open
            quote, is left unread: an incomplete row can look like a complete one.

    Raises:
        LoadError: a column is missing, or exists twice.

    """
    places: list[tuple[str, int]] = []
    for field, column in columns.items():
        if header.count(column) != 1:
            found = "no column" if column not in header else "more than one column"
            message = (
                f"{lines.name} has {found} {column!r} for {field}; "
                f"its header is: {shown_names(header)}"
            )
            raise LoadError(message, line=1)
        places.append((field, header.index(column)))
    return _csv_rows(lines, len(header), places, is_whole=is_whole)


def shown_names(names: Sequence[str]) -> str:
    """Return the first column names, shortened: in a file without a header they are values."""
    more = ["..."] if len(names) > _NAMES_SHOWN else []
    return ", ".join([name[:40] for name in names[:_NAMES_SHOWN]] + more)


def _csv_rows(
    lines: Lines, width: int, places: Sequence[tuple[str, int]], *, is_whole: bool
) -> Iterator[Row | BadRow]:
    for record in _csv_records(lines, is_whole=is_whole):
        if isinstance(record, BadRow):
            yield record
            continue
        line, cells = record
        if cells[0][:1] <= " " and _is_blank(cells):
            lines.blank_rows += 1
        elif len(cells) == width:
            yield Row(line, {field: cells[place] for field, place in places if cells[place]})
        else:
            text = ",".join(cells)
            yield BadRow(line, text, f"line: {len(cells)} cells; must be {width} as in the header")


def _csv_records(
    lines: Lines, *, is_whole: bool = True
) -> Iterator[tuple[int, list[str]] | BadRow]:
    """Yield the cells of each record with its first line."""
    csv.field_size_limit(lines.longest)  # global; the default refuses long prompts
    reader = csv.reader(lines, strict=True)
    taken = lines.taken
    while True:
        lines.begin()
        line = lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            if not is_whole and lines.has_ended:
                lines.unread = line
                return
            # An unclosed quote swallows the rows after it, but only its own line is bad.
            yield BadRow(line, lines.put_back_all_but_first(), _BROKEN_QUOTES)
            continue
        except LineTooLongError as error:
            yield _too_long(lines, error)
            if lines.taken:
                yield BadRow(line, lines.put_back_all_but_first(), _BROKEN_QUOTES)
            continue
        if taken[-1][-1] != "\n" and not is_whole and lines.is_cut() and not _is_blank(cells):
            lines.unread = line
            return
        if cells:
            yield line, cells


def _is_blank(cells: Sequence[str]) -> bool:
    return not cells[0].strip(_BLANK) and not any(cell.strip() for cell in cells[1:])


def _too_long(lines: Lines, error: LineTooLongError) -> BadRow:
    reason = f"line: longer than {lines.longest} characters; must be shorter"
    return BadRow(lines.number, error.start[:KEPT_OF_A_LONG_LINE], reason)
