"""Changes metadata that breaks a rule so that it follows the rules and its event counts.

Metadata is not part of any total, so a bad value in it must not cause an event to be refused. Only
the metadata of calls is changed, here, before the rules are applied; the rules themselves are the
same for calls, SQL and files.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from json.encoder import encode_basestring as quoted
from numbers import Integral, Rational, Real
from typing import TYPE_CHECKING, Final, Protocol, cast
from uuid import UUID

from ..errors import InvalidUsageError
from .kept import fields_of
from .metadata import (
    LARGEST_NUMBER,
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    TOO_LARGE,
    written_size,
)
from .rules import WireEvent, to_wire
from .values import LONG_INTEGER, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable

ABRIDGED: Final = "abridged"
_NOTE: Final = f"more than {MAX_METADATA_BYTES} bytes: the beginning of each value"
_ROOM: Final = MAX_METADATA_BYTES - 256  # the note takes the rest
_OF_ONE: Final = 1000  # bytes of each value, if metadata is truncated
_MOST_MEMBERS: Final = 200  # of large metadata
_BEYOND: Final = 200  # bytes that the marks of truncated values may take
_LONG_NAME: Final = 64
_CUT: Final = " ..."
# Types whose `str` is complete and always fast.
_TEXT_TYPES: Final = (UUID, timedelta, Decimal, Rational, complex, BaseException)
_LONGEST_TEXT: Final = MAX_METADATA_BYTES  # characters that are examined


def event_of(fields: object, now: datetime) -> tuple[WireEvent, str | None]:
    """Return the event of a call, and the reason if its metadata had to be changed.

    Raises:
        InvalidUsageError: see `to_wire`; never raised for metadata.

    """
    try:
        return to_wire(fields, now), None
    except InvalidUsageError as error:
        if not error.reason.startswith("metadata: "):
            raise
        why = error.reason
    except Exception as error:  # raised by a value's own methods
        if not isinstance(fields, Mapping):
            raise
        why = type(error).__name__
    given = fields_of(cast("Mapping[str, object]", fields))
    metadata = given.get("metadata")
    if metadata is None:
        return to_wire(given, now), None
    kept = _mended(metadata, is_large=why == TOO_LARGE)
    try:
        return to_wire({**given, "metadata": kept}, now), why
    except InvalidUsageError as error:
        if not error.reason.startswith("metadata: "):
            raise
    return to_wire({**given, "metadata": {ABRIDGED: "nothing of it could be kept"}}, now), why


def _mended(metadata: object, *, is_large: bool) -> dict[str, object]:
    """Return metadata that follows the rules, with as much of the given metadata as they allow."""
    members: Mapping[object, object] = {"metadata": metadata}
    if isinstance(metadata, Mapping):
        members = cast("Mapping[object, object]", metadata)
    if not is_large:
        room = _Room(_ROOM)
        plain = _members(members, room, 1)
        if not room.is_over:
            return plain
    # Limit each value equally: one long text must not displace all later values.
    left = _Room(_ROOM)
    kept: dict[str, object] = {}
    for name, value in islice(_items(members), _MOST_MEMBERS):
        if not left.take(_OF_ONE + _BEYOND):
            break
        one = _Room(_OF_ONE)
        one.take(4)
        text = _name(name, one)
        kept[text] = _plain(value, one, 2)
        left.size += one.size if one.is_over else one.size + _BEYOND
    return {**kept, ABRIDGED: _NOTE}


class _Scalar(Protocol):
    def item(self) -> object: ...


class _Room:
    """The bytes left, as PostgreSQL writes them, and whether something did not fit."""

    __slots__ = ("is_over", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.is_over = False

    def take(self, size: int) -> bool:
        """Take `size` bytes; return False if fewer are left."""
        if size > self.size:
            self.is_over = True
            return False
        self.size -= size
        return True


def _members(mapping: Mapping[object, object], room: _Room, level: int) -> dict[str, object]:
    kept: dict[str, object] = {}
    room.take(2)
    for name, value in _items(mapping):
        if not room.take(4):  # ': ' and ', '
            break
        text = _name(name, room)
        kept[text] = _plain(value, room, level + 1)
    return kept


def _items(mapping: Mapping[object, object]) -> Iterable[tuple[object, object]]:
    try:
        yield from mapping.items()
    except Exception as error:  # noqa: BLE001  # raised by its own methods
        yield "unreadable", type(error).__name__


def _plain(value: object, room: _Room, level: int) -> object:
    try:
        return _of_kind(value, room, level)
    except Exception as error:  # noqa: BLE001  # raised by a value's own methods
        return _text(f"{kind_of(value)}: {type(error).__name__}", room)


def _of_kind(value: object, room: _Room, level: int) -> object:
    kind = type(value)
    if value is None or kind is bool:
        return value if room.take(5) else None
    if kind is int:  # the usual type first: isinstance of an abstract class is slow
        return _integer(cast("int", value), room)
    if isinstance(value, str):
        return _text(str.__str__(value), room)
    if isinstance(value, Enum):
        return _of_kind(value.value, room, level)
    if isinstance(value, Integral):
        return _integer(int(value), room)
    if isinstance(value, Real) and not isinstance(value, Rational):
        number = float(value)
        if not math.isfinite(number):
            return _text({math.inf: "Infinity", -math.inf: "-Infinity"}.get(number, "NaN"), room)
        return number if room.take(written_size(number)) else _text(repr(number), room)
    if isinstance(value, bytes | bytearray):
        return _text(value[:_LONGEST_TEXT].decode(errors="backslashreplace"), room)
    if isinstance(value, date | time):
        return _text(value.isoformat(), room)
    if isinstance(value, type):
        return _text(value.__name__, room)
    if isinstance(value, _TEXT_TYPES):
        return _text(str(value), room)
    inner = _contents(value)
    if inner is not None:
        if level > MAX_METADATA_DEPTH:
            return _text(f"{kind_of(value)}: nested more than {MAX_METADATA_DEPTH} deep", room)
        if isinstance(inner, Mapping):
            return _members(cast("Mapping[object, object]", inner), room, level)
        return _list(cast("Iterable[object]", inner), room, level)
    if getattr(value, "shape", None) == ():  # a NumPy scalar
        return _of_kind(cast("_Scalar", value).item(), room, level)
    # `str` of a container, or of an object that shows all its fields, may be slow.
    has_text = kind.__str__ is not object.__str__ and not hasattr(value, "__len__")
    return _text(str(value) if has_text else kind_of(value), room)


def _contents(value: object) -> object:
    """Return a container's content as a mapping or a list; None for any other value."""
    if isinstance(value, Mapping | list | tuple | deque | Set | range):
        return cast("object", value)
    if isinstance(value, type):
        return None
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(getattr(type(value), "model_fields", None), Mapping):  # a pydantic model
        return dict(vars(value))
    return None


def _list(values: Iterable[object], room: _Room, level: int) -> list[object]:
    kept: list[object] = []
    room.take(2)
    for value in values:
        if not room.take(2):
            break
        kept.append(_plain(value, room, level + 1))
    return kept


def _name(name: object, room: _Room) -> str:
    kind = type(name)
    if kind is str:
        text = cast("str", name)
    elif name is None or kind is bool:
        text = "null" if name is None else str(name).lower()
    else:
        # A container is represented by its kind only.
        plain = _plain(name, _Room(_OF_ONE), MAX_METADATA_DEPTH + 1)
        text = plain if isinstance(plain, str) else str(plain)
    if len(text) > _LONG_NAME and len(text) > room.size // 8:
        room.is_over = True
        text = text[:_LONG_NAME] + _CUT
    return _text(text, room)


def _integer(number: int, room: _Room) -> object:
    if number.bit_length() > LONG_INTEGER:
        return _text(f"an integer of {number.bit_length()} bits", room)
    if not -LARGEST_NUMBER <= number <= LARGEST_NUMBER:
        return _text(str(number), room)
    return number if room.take(len(str(number))) else _text("an integer", room)


def _text(text: str, room: _Room) -> str:
    """Return as much of the text as fits, without characters that PostgreSQL cannot store."""
    begin = text[:_LONGEST_TEXT].replace("\0", "\\u0000")
    begin = begin.encode(errors="backslashreplace").decode()
    if len(text) <= _LONGEST_TEXT and room.take(_size(begin)):
        return begin
    room.is_over = True
    most = room.size - len(_CUT)
    while _size(begin := begin[: max(0, most)]) + len(_CUT) > room.size and begin:
        most = min(most, len(begin)) // 2
    room.size -= min(room.size, _size(begin) + len(_CUT))
    return begin + _CUT


def _size(text: str) -> int:
    return len(quoted(text).encode())
