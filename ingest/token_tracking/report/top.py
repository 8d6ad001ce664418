"""The first items of many, and the rest combined, so that the sum is complete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


@dataclass(frozen=True)
class Top(Generic[T]):
    """The first items, and the rest."""

    first: Sequence[T]
    others: Sequence[T]


def top_of(items: Sequence[T], size: int) -> Top[T]:
    """Return the first `size` items and the rest; a rest of one item joins the first items."""
    if len(items) == size + 1:
        size += 1
    return Top(items[:size], items[size:])
