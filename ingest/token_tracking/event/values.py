"""Describes callers' values by JSON's type names, without showing a value, and as text."""

from __future__ import annotations

from datetime import date, time
from decimal import Decimal
from typing import Final
from uuid import UUID

LONG_INTEGER: Final = 13_000  # bits; Python converts at most 4300 digits

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


def kind_of(value: object) -> str:
    """Return a value's JSON type name, or its Python type; never shows the value."""
    return type_of_json.get(type(value)) or f"a value of type {type(value).__name__}"


def text_of(value: object) -> str:
    """Return a non-JSON value as text; for an unknown type, whose text may be long, its name."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if value is None or isinstance(value, UUID | Decimal | bool | float):
        return str(value)
    if isinstance(value, int):
        return str(int.__index__(value)) if value.bit_length() < LONG_INTEGER else "an integer"
    return kind_of(value)
