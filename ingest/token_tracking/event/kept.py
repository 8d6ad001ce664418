"""Refused payloads in the form in which they are stored: JSON text of at most 64 KiB."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, cast

from .fields import EVENT_FIELDS
from .values import LONG_INTEGER, kind_of, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_KEPT_BYTES: Final = 64 * 1024
# Added to the cost of each value of a refused payload, to bound the number of short values, too.
_KEPT_BESIDE_TEXT: Final = 16
_KEPT_FIELDS: Final = 21
_DEEPEST_KEPT: Final = 50
_KEPT_OF_FIELD: Final = 1000
_SHORT_NAME: Final = 64


def keepable(payload: object) -> bytes:
    """Return any refused payload as JSON text; values that JSON cannot represent become text.

    The text is escaped, so that NUL and lone surrogates can be stored. Above 64 KiB it is truncated
    like in the procedures: to the first fields, and each long field to its beginning as text.
    """
    room = _Room(MAX_KEPT_BYTES, all_or_nothing=True)
    plain = _plain(payload, room)
    text = "" if room.is_cut else json.dumps(plain, allow_nan=False)
    if room.is_cut or len(text) > MAX_KEPT_BYTES:
        text = json.dumps(_abridged(payload))
    return text.encode()


def fields_of(event: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of an event's fields; not all of them if the mapping is endless."""
    most = MAX_KEPT_BYTES // _KEPT_BESIDE_TEXT
    kind = type(event)
    if kind is dict and len(event) <= most:
        return dict(event)  # the usual case
    members = dict[str, object].items(event) if isinstance(event, dict) else event.items()
    return dict(islice(members, most))


class _Room:
    """How many more characters of a refused payload fit, and whether some did not."""

    __slots__ = ("all_or_nothing", "is_cut", "left")

    def __init__(self, left: int, *, all_or_nothing: bool = False) -> None:
        self.left = left
        self.is_cut = False
        self.all_or_nothing = all_or_nothing

    def is_too_small_for(self, number: int) -> bool:
        if self.all_or_nothing and number * _KEPT_BESIDE_TEXT > self.left:
            self.is_cut = True
        return self.all_or_nothing and self.is_cut

    def beginning(self, text: str) -> str:
        if len(text) > self.left:
            self.is_cut = True
            text = text[: max(0, self.left)]
        self.left -= len(text)
        return text


def _plain(value: object, room: _Room, depth: int = 0) -> object:
    room.left -= _KEPT_BESIDE_TEXT
    kind = type(value)  # isinstance is slow, and there can be thousands of values
    if value is None or kind is bool:
        return value
    if kind is str:
        return room.beginning(cast("str", value))
    if isinstance(value, str):
        return room.beginning(str.__str__(value))
    if isinstance(value, int):
        number = int.__index__(value)
        size = number.bit_length()
        return number if size < LONG_INTEGER else f"an integer of {size} bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else float.__repr__(value)
    if isinstance(value, bytes | bytearray):
        return room.beginning(repr(bytes(value[: max(0, room.left)])))
    try:
        if depth < _DEEPEST_KEPT:
            if isinstance(value, Mapping):
                members = cast("Mapping[object, object]", value)
                if room.is_too_small_for(len(members)):
                    return None
                return _plain_mapping(members, room, depth)
            if isinstance(value, Sequence | set | frozenset):
                items = cast("Sequence[object]", value)
                if room.is_too_small_for(len(items)):
                    return None
                return _plain_items(items, room, depth)
        return room.beginning(text_of(value))
    except Exception as error:  # noqa: BLE001  # raised by the value's own methods; keep the rest
        return f"{kind_of(cast('object', value))}: {type(error).__name__}"


def _plain_mapping(value: Mapping[object, object], room: _Room, depth: int) -> dict[str, object]:
    kept: dict[str, object] = {}
    for name, content in value.items():
        if room.left <= 0:
            room.is_cut = True
            break
        kept[room.beginning(text_of(name))] = _plain(content, room, depth + 1)
    return kept


def _plain_items(value: Iterable[object], room: _Room, depth: int) -> list[object]:
    kept: list[object] = []
    for content in value:
        if room.left <= 0:
            room.is_cut = True
            break
        kept.append(_plain(content, room, depth + 1))
    return kept


def _abridged(payload: object) -> dict[str, object]:
    fields: dict[object, object] = {"payload": payload}
    if isinstance(payload, Mapping):
        fields = dict(cast("Mapping[object, object]", payload))
    # Put the fields that identify the event first, wherever they are.
    names = sorted(fields, key=lambda name: name not in EVENT_FIELDS and name != "call_id")
    kept = {text_of(name)[:_SHORT_NAME]: _beginning(fields[name]) for name in names[:_KEPT_FIELDS]}
    return {**kept, "cut": f"more than {MAX_KEPT_BYTES} bytes: the beginnings of its fields"}


def _beginning(value: object) -> object:
    room = _Room(2 * _KEPT_OF_FIELD)
    plain = _plain(value, room)
    text = json.dumps(plain)
    if not room.is_cut and len(text) <= _KEPT_OF_FIELD:
        return plain
    return f"{text[:_KEPT_OF_FIELD]} ..."
