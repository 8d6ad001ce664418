"""The first of many, and the rest as one, so that totals close."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


@dataclass(frozen=True)
class Top(Generic[T]):
    """The first items, and those after them."""

    first: Sequence[T]
    others: Sequence[T]


def top_of(items: Sequence[T], size: int) -> Top[T]:
    """Return the first `size` items and the rest; a rest of one is shown itself."""
    if len(items) == size + 1:
        size += 1
    return Top(items[:size], items[size:])
