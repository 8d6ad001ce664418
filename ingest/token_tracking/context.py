"""Arguments that a whole request has in common, kept in context variables."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from uuid import UUID

_context: Final[ContextVar[Mapping[str, str | UUID]]] = ContextVar("usage_context")
_NOTHING: Final[Mapping[str, str | UUID]] = {}


@contextmanager
def usage_context(
    *,
    tenant_id: str | UUID | None = None,
    agent_id: str | UUID | None = None,
    conversation_id: str | UUID | None = None,
    collection_id: str | UUID | None = None,
) -> Generator[None]:
    """Fill these arguments of every call inside the block where the call itself gives none.

    Follows the current task and thread like any context variable; an inner block adds to the outer
    one.

    Example:
        >>> with usage_context(tenant_id="acme", conversation_id="c-7"):
        ...     track_token_usage_sync(tokens=12)  # doctest: +SKIP

    """
    given = {
        "tenant_id": tenant_id,
        "agent_id": agent_id,
        "conversation_id": conversation_id,
        "collection_id": collection_id,
    }
    inner = {name: value for name, value in given.items() if value is not None}
    token = _context.set({**current_context(), **inner})
    try:
        yield
    finally:
        _context.reset(token)


def current_context() -> Mapping[str, str | UUID]:
    """Return what the blocks around this call fill in."""
    return _context.get(_NOTHING)
