"""The module that existing services import: re-exports every public name of `token_tracking`.

`common` has no `__init__.py`: as a namespace package it never hides a service's own `common`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import token_tracking

if TYPE_CHECKING:
    from token_tracking import *  # noqa: F403

__all__ = token_tracking.__all__  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    return getattr(token_tracking, name)


def __dir__() -> list[str]:
    return __all__
