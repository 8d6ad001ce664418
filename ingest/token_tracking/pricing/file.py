"""Prices from a file: CSV or JSON lines, with the columns of `model_prices`."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from ..errors import InvalidPriceError, PricesError
from .hours import hour_of
from .rules import FIELDS, cleaned_label, price_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import TextIO

    _Given = Callable[[], object]

NONE: Final = "none"
# Of an exported table: recording sets them.
_SET_BY_RECORDING: Final = frozenset({"revision", "recorded_by", "recorded_at", "ingest_xid"})
_LABELS: Final = frozenset(
    {field.name for field in FIELDS["model_prices"] if field.kind == "label"}
)
_KEYS: Final = tuple(field for field in FIELDS["model_prices"] if field.part == "key")


@dataclass
class PriceFile:
    """The rows of a file, and what is wrong with others, by line."""

    rows: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    problems: list[InvalidPriceError] = field(default_factory=list[InvalidPriceError])

    @classmethod
    def read(cls, path: Path) -> PriceFile:
        """Read and check a file; its suffix says what it is.

        Raises:
            PricesError: it has another suffix, or is no such text.
            OSError: it cannot be read.

        """
        read = _READERS.get(path.suffix.lower())
        if read is None:
            message = f"{path}: must be a .csv or .jsonl file"
            raise PricesError(message)
        found = cls()
        first_lines: dict[tuple[object, ...], int] = {}
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                for line, given in read(file):
                    found._add(line, given, first_lines)
        except (UnicodeDecodeError, csv.Error) as error:
            message = f"{path}: not UTF-8 text in this format: {error}"
            raise PricesError(message) from error
        return found

    def _add(self, line: int, given: _Given, first_lines: dict[tuple[object, ...], int]) -> None:
        try:
            row = _row_of(given())
            if problem := price_problem("model_prices", row):
                raise InvalidPriceError(problem)
            key = _key_of(row)
            if key in first_lines:
                reason = f"the same price from the same time as line {first_lines[key]}"
                raise InvalidPriceError(reason)
        except InvalidPriceError as error:
            self.problems.append(InvalidPriceError(error.reason, line=line))
        else:
            first_lines[key] = line
            self.rows.append(row)


def amount_of(text: str) -> Decimal | None:
    """Return a price per million tokens; None for `none`, which ends a price.

    Raises:
        InvalidPriceError: the text is neither.

    """
    if text.strip().lower() == NONE:
        return None
    try:
        amount = Decimal(text.strip())
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite():
        shown = repr(text) if text else "empty"
        reason = f"{shown}; must be a number, 0 for free, or {NONE} to end the price"
        raise InvalidPriceError(reason)
    return amount


def _row_of(given: object) -> dict[str, object]:
    if not isinstance(given, dict):
        reason = "not an object"
        raise InvalidPriceError(reason)
    row = {
        name: value
        for name, value in cast("dict[str, object]", given).items()
        if name not in _SET_BY_RECORDING
    }
    # As people write it: a day, or a time without offset, is in UTC.
    if isinstance(text := row.get("valid_from"), str):
        row["valid_from"] = hour_of(text)
    return row


def _key_of(row: Mapping[str, object]) -> tuple[object, ...]:
    values = ((field.name, row.get(field.name, field.default)) for field in _KEYS)
    return tuple(cleaned_label(str(value)) if name in _LABELS else value for name, value in values)


def _csv_rows(file: TextIO) -> Iterator[tuple[int, _Given]]:
    reader = csv.DictReader(file, strict=True)
    line = reader.line_num + 2
    for cells in reader:
        yield line, partial(_from_cells, cells)
        line = reader.line_num + 1


def _json_rows(file: TextIO) -> Iterator[tuple[int, _Given]]:
    for line, text in enumerate(file, start=1):
        if text.strip():
            yield line, partial(_from_json, text)


def _from_cells(cells: Mapping[str | None, str | None]) -> object:
    if None in cells or None in cells.values():
        reason = "more or fewer cells than the first line"
        raise InvalidPriceError(reason)
    given = cast("Mapping[str, str]", cells)
    row: dict[str, object] = {name: cell for name, cell in given.items() if cell}
    if "amount" in given:
        try:
            row["amount"] = amount_of(given["amount"])
        except InvalidPriceError as error:
            reason = f"amount: {error.reason}"
            raise InvalidPriceError(reason) from error
    if "context_over" in row:
        row["context_over"] = _whole_number(given["context_over"])
    return row


def _from_json(text: str) -> object:
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "not JSON"
        raise InvalidPriceError(reason) from error


def _refuse_constant(text: str) -> object:
    raise ValueError(text)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        reason = f"context_over: {text!r}; must be a whole number of tokens"
        raise InvalidPriceError(reason) from error


_READERS: Final = {".csv": _csv_rows, ".jsonl": _json_rows}
