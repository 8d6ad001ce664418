"""Reads members and counts of a response, which may be an object or a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, cast

from ..event.fields import MAX_TOKENS
from ..event.values import kind_of

# Classes of which some libraries make a value that stands for an absent member.
_ABSENT: Final = frozenset({"NotGiven", "Omit", "Unset"})
_ELSE: Final = True  # for objects of any other class
# How long a provider keeps what was written to its cache; an hour and more is long.
_SHORT: Final = ("ephemeral_5m_input_tokens", "ephemeral_30m_input_tokens", "ttl_30m_tokens")
_LONG: Final = ("ephemeral_1h_input_tokens", "ephemeral_12h_input_tokens", "ttl_12h_tokens")


def member(value: object, name: str) -> object:
    """Return the member of an object or dictionary; None if it is absent."""
    if type(value) is dict:
        found = cast("dict[str, object]", value).get(name)
    elif value is None:
        return None
    elif isinstance(value, Mapping):
        found = cast("Mapping[str, object]", value).get(name)
    else:
        if name not in getattr(value, "__dict__", ()):
            # A model of pydantic takes long to say that it has no such attribute.
            extra = cast("object", getattr(value, "__pydantic_extra__", _ELSE))
            if not extra and not hasattr(type(value), name):
                return None
        found = cast("object", getattr(value, name, None))
    return None if type(found).__name__ in _ABSENT else found


def first(*values: object) -> object:
    """Return the first value that is present, else None."""
    return next((value for value in values if value is not None), None)


class Counts:
    """Reads counts; a value that cannot be a count becomes None and a fault."""

    __slots__ = ("faults",)

    def __init__(self) -> None:
        self.faults: list[str] = []

    def read(self, source: object, name: str, *spellings: str) -> int | None:
        """Return the count, which may have several spellings: they are the same tokens."""
        count = self._read(source, name)
        for spelling in spellings:
            count = self.same(name, count, self._read(source, spelling))
        return count

    def same(self, name: str, count: int | None, other: int | None) -> int | None:
        """Return the count that one of two places tells; it is a fault if they differ."""
        if count is None or other is None:
            return other if count is None else count
        if count != other:
            self.faults.append(f"{name} is told as {count} and as {other}")
        return count

    def _read(self, source: object, name: str) -> int | None:
        value = member(source, name)
        if type(value) is int and 0 <= value <= MAX_TOKENS:
            return value
        return None if value is None else self._converted(name, value)

    def _converted(self, name: str, value: object) -> int | None:
        # Cohere's counts are floats. A boolean is an integer to Python, but never a count.
        if isinstance(value, int | float) and not isinstance(value, bool):
            if 0 <= value <= MAX_TOKENS and value == int(value):
                return int(value)
            self.faults.append(f"{name} is no integer from 0 to {MAX_TOKENS}")
        else:
            self.faults.append(f"{name} is {kind_of(value)}")
        return None

    def sum(self, *parts: int | None) -> int | None:
        """Return the sum of the parts that are present; None if none is, or one was no count."""
        present = [part for part in parts if part is not None]
        return sum(present) if present and not self.faults else None

    def by_lifetime(self, details: object) -> tuple[int | None, int | None]:
        """Return the cache writes that are kept shortly, and those that are kept long."""
        if details is None:
            return None, None
        short = self.sum(*[self.read(details, name) for name in _SHORT])
        return short, self.sum(*[self.read(details, name) for name in _LONG])


class Reported(NamedTuple):
    """What a response reports, before it is checked; the counts are inclusive, as in an event.

    `faults` are the values that cannot be counts, `left_out` is what the counts do not contain.
    `cache_write_short_tokens` only serves the check: an event has no field for them.
    """

    provider: str | None
    model: object
    response_id: object
    faults: list[str]
    total: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_short_tokens: int | None = None
    cache_write_long_tokens: int | None = None
    reasoning_tokens: int | None = None
    service_tier: str | None = None
    token_type: Literal["llm", "embedding"] = "llm"  # noqa: S105
    left_out: str | None = None
