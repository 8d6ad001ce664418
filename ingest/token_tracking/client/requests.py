"""The requests that a tracker writes (events, rejections, voids, owners) and their outcomes."""

from __future__ import annotations

import json
import os
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Union, cast

from ..event.keys import new_event_key
from ..event.rules import occurred_at_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from .connection import Connection
    from .runtimes import TrioFuture

    Future = Union[asyncio.Future["Answer"], TrioFuture, "BlockingFuture"]  # noqa: UP007


class Outcome(StrEnum):
    """How a call ended; each call has exactly one outcome."""

    RECORDED = "recorded"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    REJECTED = "rejected"
    SPOOLED = "spooled"
    FALLBACK = "fallback"
    REFUSED = "refused"
    NO_OP = "no_op"


class Noted(StrEnum):
    """What is counted of instrumented clients' calls, beside their outcome."""

    CUT_STREAM = "cut_streams"
    WITHOUT_USAGE = "without_usage"
    WITHOUT_TENANT = "without_tenant"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a call. `reason` is None if the call returns True."""

    outcome: Outcome
    reason: str | None = None


FORKED: Final = Answer(
    Outcome.REFUSED, "the process was forked while the call waited: the parent process sends it"
)


class BlockingFuture:
    """A future for a thread without an event loop; it is set once.

    It has no lock on which a signal handler that calls while this thread waits could deadlock.
    """

    __slots__ = ("_answer", "_given")

    def __init__(self) -> None:
        self._answer: Answer | None = None
        self._given = threading.Lock()
        self._given.acquire()

    def done(self) -> bool:
        """Return whether the answer is set."""
        return self._answer is not None

    def set_result(self, answer: Answer) -> None:
        """Set the answer."""
        self._answer = answer
        self._given.release()

    def result(self) -> Answer:
        """Wait for the answer."""
        if self._answer is None:
            _waited_for.add(self)
            try:
                while self._answer is None:
                    self._given.acquire()
            finally:
                _waited_for.discard(self)
        return self._answer

    def give_up(self) -> None:
        """Answer in a forked child: the thread that would answer exists only in the parent."""
        self._answer = self._answer or FORKED
        if self._given.locked():
            self._given.release()


_waited_for: Final[set[BlockingFuture]] = set()


def _after_fork_in_child() -> None:
    # A signal handler forked: the call that it interrupted continues in the child, too.
    for future in tuple(_waited_for):
        future.give_up()


class Request:
    """One write. Its key and times are fixed, so it can be sent any number of times.

    `order` is the sort key that all writers send by. `future` receives the answer; it belongs to a
    waiting task's loop or to a waiting thread, and is None if neither waits. `original` holds the
    call's arguments, kept only if a fallback may need them. `since` is the time of the call by the
    monotonic clock. `uncertain` is True once an attempt may have committed the request without
    reporting it.
    """

    __slots__ = ("future", "order", "original", "payload", "since", "uncertain")
    kind: str

    def __init__(self, order: tuple[str, str], payload: bytes) -> None:
        self.order = order
        self.payload = payload
        self.future: Future | None = None
        self.original: Mapping[str, object] | None = None
        self.since = 0.0
        self.uncertain = False

    def lock_key(self) -> str:
        """Return the name of the row that it locks: requests with equal keys keep their order."""
        return json.dumps((self.kind, *self.order))


class EventRequest(Request):
    """An accepted usage event as the JSON text that the procedure takes; sent in batches."""

    __slots__ = ()
    kind = "event"

    def occurred_at(self) -> bytes:
        """Return the event's time in ISO 8601 and UTC, which as text sorts by time."""
        return occurred_at_of(self.payload)


class SingleRequest(Request, ABC):
    """A request that is written in a statement of its own."""

    __slots__ = ()

    @abstractmethod
    def send(self, database: Connection) -> Answer:
        """Write the request."""


class RejectionRequest(SingleRequest):
    """A refused payload to store: `payload` is its JSON text.

    `is_told` says that the log names the reason already.
    """

    __slots__ = ("is_told", "reason")
    kind = "rejection"

    def __init__(self, payload: bytes, reason: str, *, is_told: bool = False) -> None:
        super().__init__(("", ""), payload)
        self.is_told = is_told
        # The reason may quote an arbitrary name given by the caller.
        self.reason = reason.replace("\0", "?").encode(errors="replace").decode()

    def lock_key(self) -> str:
        return json.dumps((self.kind, hash(self.payload)))

    def send(self, database: Connection) -> Answer:
        database.reject(self.payload, self.reason)
        return Answer(Outcome.REJECTED, self.reason)


class VoidRequest(SingleRequest):
    """Excludes an event from all totals."""

    __slots__ = ()
    kind = "void"

    @classmethod
    def of(cls, tenant_id: str, idempotency_key: str, reason: str) -> VoidRequest:
        return cls((tenant_id, idempotency_key), _array(tenant_id, idempotency_key, reason))

    def send(self, database: Connection) -> Answer:
        tenant_id, idempotency_key, reason = cast("list[str]", json.loads(self.payload))
        return _answer_of(database.void(tenant_id, idempotency_key, reason))


class OwnerRequest(SingleRequest):
    """Records an agent's owner from an instant on; the call's id identifies a retry."""

    __slots__ = ()
    kind = "owner"

    @classmethod
    def of(cls, agent_id: str, owner_tenant_id: str | None, valid_from: str) -> OwnerRequest:
        call_id = new_event_key()
        return cls((agent_id, valid_from), _array(agent_id, owner_tenant_id, valid_from, call_id))

    def lock_key(self) -> str:
        return json.dumps((self.kind, self.order[0]))  # one writer per agent at a time

    def send(self, database: Connection) -> Answer:
        agent_id, owner, valid_from, call_id = cast(
            "tuple[str, str | None, str, str]", json.loads(self.payload)
        )
        return _answer_of(database.record_owner(agent_id, owner, valid_from, call_id))


def restored(kind: str, first: str, second: str, payload: bytes) -> Request:
    """Rebuild the request from the form in which `kept_form` stores it."""
    if kind == RejectionRequest.kind:
        return RejectionRequest(payload, first)
    return _KINDS[kind]((first, second), payload)


def kept_form(request: Request) -> tuple[str, str, str, bytes]:
    """Return the form from which `restored` rebuilds the request."""
    if isinstance(request, RejectionRequest):
        return request.kind, request.reason, "", request.payload
    return request.kind, *request.order, request.payload


_KINDS: dict[str, Callable[[tuple[str, str], bytes], Request]] = {
    cls.kind: cls for cls in (EventRequest, VoidRequest, OwnerRequest)
}


def _array(*values: str | None) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode()


def _answer_of(taken: bool) -> Answer:
    if taken:
        return Answer(Outcome.RECORDED)
    return Answer(Outcome.REJECTED, "the procedure refused it, see usage_event_rejections")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
