"""Arguments shared by all calls of a request, kept in context variables."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from contextvars import Token
    from uuid import UUID

_NOTHING: Final[Mapping[str, str | UUID]] = {}


class _Block:
    """One block: the arguments that it fills in, and the enclosing block.

    `is_left` is set if the block's end ran in another context, or inside a block that began later.
    Its beginning cannot be undone then, so from there on it fills in nothing, in any context.
    """

    __slots__ = ("gives", "is_left", "outer")

    def __init__(self, gives: Mapping[str, str | UUID], outer: _Block | None) -> None:
        self.gives = gives
        self.outer = outer
        self.is_left = False
        # Skip ended blocks: a context that outlives many requests must not collect a chain of them.
        inner = self
        while inner is not None:
            while inner.outer is not None and inner.outer.is_left:
                inner.outer = inner.outer.outer
            inner = inner.outer


_context: Final[ContextVar[_Block | None]] = ContextVar("usage_context", default=None)
_used: Final[deque[bool]] = deque(maxlen=1)


@contextmanager
def usage_context(
    *,
    tenant_id: str | UUID | None = None,
    agent_id: str | UUID | None = None,
    conversation_id: str | UUID | None = None,
    collection_id: str | UUID | None = None,
    operation: str | None = None,
) -> Generator[None]:
    """Provide default arguments for every call inside the block.

    `operation` is for calls that need not name one: those of instrumented clients, of
    `track_response` and `track_many`. `track_token_usage` has a default of its own.

    A call's own argument takes precedence, and an inner block adds to the outer one. The block
    follows the current task and thread like any context variable, so it should end in the context
    in which it began. Around a `yield` this may not hold: FastAPI runs the two halves of a plain
    `def` dependency in two contexts, and a generator runs in its consumer's context. Leaving the
    block never raises, and a block that was left provides nothing; but calls that run in another
    context than the block's beginning never see it. Use an async dependency or a middleware
    instead, or pass the ids to the call itself.

    Example:
        >>> with usage_context(tenant_id="acme", conversation_id="c-7"):
        ...     track_token_usage_sync(tokens=12)  # doctest: +SKIP

    """
    given = {
        "tenant_id": tenant_id,
        "agent_id": agent_id,
        "conversation_id": conversation_id,
        "collection_id": collection_id,
        "operation": operation,
    }
    inner = {name: value for name, value in given.items() if value is not None}
    block = _Block(inner, _context.get())
    token = _context.set(block)
    _used.append(True)
    try:
        yield
    finally:
        block.is_left = not _undone(block, token)


def _undone(block: _Block, token: Token[_Block | None]) -> bool:
    if _context.get() is not block:
        return False
    try:
        _context.reset(token)
    except (RuntimeError, ValueError):  # ended in a copy of the context in which it began
        return False
    return True


def current_context() -> Mapping[str, str | UUID]:
    """Return the arguments that the enclosing blocks fill in."""
    block = _context.get()
    if block is None:
        return _NOTHING
    fields: dict[str, str | UUID] = {}
    while block is not None:
        if not block.is_left:
            fields = {**block.gives, **fields}
        block = block.outer
    return fields


def is_used() -> bool:
    """Return whether this process has entered such a block."""
    return bool(_used)
