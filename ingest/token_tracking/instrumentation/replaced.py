"""Replaces attributes of single objects, and undoes it exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_ABSENT: Final = object()


def replaced(target: object, name: str, value: object) -> Callable[[], None]:
    """Set the attribute on the object itself; return the function that undoes it.

    What somebody else has set in the meantime stays.
    """
    own = vars(target)
    before: object = own.get(name, _ABSENT)
    setattr(target, name, value)

    def undo() -> None:
        if own.get(name) is not value:
            return
        if before is _ABSENT:
            delattr(target, name)
        else:
            setattr(target, name, before)

    return undo
