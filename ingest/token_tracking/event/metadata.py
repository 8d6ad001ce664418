"""The rules for metadata, and its JSON text, measured as PostgreSQL writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from enum import Enum
from json.encoder import encode_basestring as quoted
from typing import TYPE_CHECKING, Final, cast
from uuid import UUID

from ..errors import InvalidUsageError
from .values import kind_of, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_METADATA_BYTES: Final = 16 * 1024
MAX_METADATA_DEPTH: Final = 8
LARGEST_NUMBER: Final = 17976931348623157 * 10**292  # of a double, which any language can read
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
_DOUBLE_BITS: Final = 1024
# Metadata within these limits, and flat except for lists, cannot break a rule: each character takes
# at most four bytes and a space, and each of the few floats at most the 325 digits of the longest.
_FEW: Final = 16
_SHORT_NAME: Final = 64
_SHORT_TEXT: Final = 100
_SHORT_NUMBER: Final = 10**18
_SHORT_WHOLE: Final = 2000
_WORDS: Final[Mapping[object, str]] = {None: "null", False: "false", True: "true"}
_TEXT_TYPES: Final = (UUID, date, time, Decimal)  # a datetime is a date
_encode: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False
).encode


def metadata_text(metadata: object) -> str:
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
    """Return JSON text if the metadata is too small and plain to break a rule, as most is."""
    members: list[str] = []
    for name, value in metadata.items():
        if type(name) is not str or len(name) > _SHORT_NAME:
            return None
        if type(value) is str and len(value) <= _SHORT_TEXT:
            text = quoted(value)
        elif type(value) is int and -_SHORT_NUMBER < value < _SHORT_NUMBER:
            text = str(value)
        elif type(value) is list:
            text = _flat_list(cast("list[object]", value))
        else:
            text = _flat(value)
        if text is None:
            return None
        members.append(f"{quoted(name)}:{text}")
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
        return quoted(cast("str", value)) if len(cast("str", value)) <= _SHORT_TEXT else None
    if kind is int:
        return str(value) if -_SHORT_NUMBER < cast("int", value) < _SHORT_NUMBER else None
    if kind is float:
        if not math.isfinite(cast("float", value)):
            raise InvalidUsageError(_NO_NUMBER)
        return repr(value)
    return _WORDS[value] if value is None or kind is bool else None


class _Measure:
    """Copies metadata into plain values and counts the bytes that PostgreSQL writes for them.

    It stops at the limit, before it processes anything large: so no value, however large, blocks
    the caller's event loop. A value that contains itself or is endless exceeds the limit.
    """

    def __init__(self) -> None:
        self._room = MAX_METADATA_BYTES
        self._is_deep = False
        self._is_huge = False
        self._waiting: list[tuple[object, dict[str, object] | list[object], int]] = []

    def plain(self, metadata: Mapping[object, object]) -> object:
        """Return a copy of JSON values; raise `InvalidUsageError` if a rule is broken."""
        whole = self._value(metadata, 1)
        # Not recursive: the size rule comes before the depth rule, also for values too deep.
        while self._waiting:
            source, copy, level = self._waiting.pop()
            if level > MAX_METADATA_DEPTH:
                self._is_deep = True
                source = self._inmost(source)
            if isinstance(copy, dict):
                for name, value in cast("Mapping[object, object]", source).items():
                    self._spend(4)  # ': ' and ', '; one ', ' less, but two brackets
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
        if kind is list:  # the usual types first: isinstance of an abstract class is slow
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
            return self._text(text_of(value))
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
        """Count the brackets of lists nested directly in each other; return the innermost value."""
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
            written = quoted(text)
            self._spend(
                len(written if written.isascii() else written.encode("utf-8", "surrogatepass"))
            )
        else:
            self._spend(len(text) + 2)
        return text

    def _integer(self, number: int) -> int:
        bits = number.bit_length()
        if bits <= _DOUBLE_BITS:
            self._spend(len(str(number)))
        else:  # an estimate: formatting it would be slow
            self._spend(int(bits * math.log10(2)))
        if bits >= _DOUBLE_BITS and not -LARGEST_NUMBER <= number <= LARGEST_NUMBER:
            self._is_huge = True
        return number

    def _refuse_above(self, number: int, least: int) -> None:
        """Refuse `number` items at once if even the shortest ones would not fit."""
        if number * least > self._room:
            raise InvalidUsageError(TOO_LARGE)

    def _spend(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise InvalidUsageError(TOO_LARGE)


def written_size(number: float) -> int:
    """Return the length of a number in jsonb, which has no exponents and no negative zero.

    Raises:
        InvalidUsageError: the number is NaN or infinity.

    """
    if not math.isfinite(number):
        raise InvalidUsageError(_NO_NUMBER)
    text = float.__repr__(number)
    if number == 0:
        return 3
    return len(format(Decimal(text), "f")) if "e" in text else len(text)
