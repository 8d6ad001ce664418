"""What a tracker writes: events, refused payloads, voids, owners; and how each of them ends."""

from __future__ import annotations

import json
import os
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Union, cast

from ..event.keys import new_event_key

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from .connection import Connection
    from .runtimes import TrioFuture

    Future = Union[asyncio.Future["Answer"], TrioFuture, "BlockingFuture"]  # noqa: UP007


_OCCURRED_AT: Final = b'"occurred_at":"'


class Outcome(StrEnum):
    """How one call ended; exactly one of these."""

    RECORDED = "recorded"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    REJECTED = "rejected"
    SPOOLED = "spooled"
    FALLBACK = "fallback"
    REFUSED = "refused"
    NO_OP = "no_op"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call is told. `reason` is None where the answer is True."""

    outcome: Outcome
    reason: str | None = None


FORKED: Final = Answer(
    Outcome.REFUSED, "the process was forked while the call waited: the parent process sends it"
)


class BlockingFuture:
    """An answer that a thread without event loop waits for; it is given once.

    There is no lock that a signal's handler, which calls while this thread waits, could meet.
    """

    __slots__ = ("_answer", "_given")

    def __init__(self) -> None:
        self._answer: Answer | None = None
        self._given = threading.Lock()
        self._given.acquire()

    def done(self) -> bool:
        """Say whether the answer is there."""
        return self._answer is not None

    def set_result(self, answer: Answer) -> None:
        """Give the answer."""
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
        """Answer for the parent process, which alone has the thread that would."""
        self._answer = self._answer or FORKED
        if self._given.locked():
            self._given.release()


_waited_for: Final[set[BlockingFuture]] = set()


def _after_fork_in_child() -> None:
    # A signal's handler forked, and the call that it interrupted goes on in the child, too.
    for future in tuple(_waited_for):
        future.give_up()


class Request:
    """One thing to write. Its key and times are fixed, so it can be sent any number of times.

    `order` is its place among others: all writers send in the same order. `future` gets the answer;
    it belongs to a waiting task's loop or to a waiting thread, and is None where nobody waits.
    `original` are the arguments of the call, kept only where a fallback may need them. `since` is
    when the call was made, by the monotonic clock. `uncertain` from the first attempt on that may
    have committed it without our knowing.
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
        """Return the name of the row that it may have to wait for: equal ones keep their order."""
        return json.dumps((self.kind, *self.order))


class EventRequest(Request):
    """An accepted usage event, as the JSON text that the procedure takes; sent with many others."""

    __slots__ = ()
    kind = "event"

    def occurred_at(self) -> bytes:
        """Return the event's time: ISO 8601 in UTC, so its order as text is its order in time."""
        # The last field: metadata before it may hold the same mark.
        at = self.payload.rfind(_OCCURRED_AT)
        return self.payload[at + len(_OCCURRED_AT) : -2] if at >= 0 else b""


class SingleRequest(Request, ABC):
    """A request that is written by itself."""

    __slots__ = ()

    @abstractmethod
    def send(self, database: Connection) -> Answer:
        """Write it."""


class RejectionRequest(SingleRequest):
    """A refused payload, to be kept: `payload` is its JSON text."""

    __slots__ = ("reason",)
    kind = "rejection"

    def __init__(self, payload: bytes, reason: str) -> None:
        super().__init__(("", ""), payload)
        # It may quote a name that the caller made up.
        self.reason = reason.replace("\0", "?").encode(errors="replace").decode()

    def lock_key(self) -> str:
        return json.dumps((self.kind, hash(self.payload)))

    def send(self, database: Connection) -> Answer:
        database.reject(self.payload, self.reason)
        return Answer(Outcome.REJECTED, self.reason)


class VoidRequest(SingleRequest):
    """An event to be taken out of all totals."""

    __slots__ = ()
    kind = "void"

    @classmethod
    def of(cls, tenant_id: str, idempotency_key: str, reason: str) -> VoidRequest:
        return cls((tenant_id, idempotency_key), _array(tenant_id, idempotency_key, reason))

    def send(self, database: Connection) -> Answer:
        tenant_id, idempotency_key, reason = cast("list[str]", json.loads(self.payload))
        return _answer_of(database.void(tenant_id, idempotency_key, reason))


class OwnerRequest(SingleRequest):
    """An agent's owner from an instant on; sent again, it is known by the id of its call."""

    __slots__ = ()
    kind = "owner"

    @classmethod
    def of(cls, agent_id: str, owner_tenant_id: str | None, valid_from: str) -> OwnerRequest:
        call_id = new_event_key()
        return cls((agent_id, valid_from), _array(agent_id, owner_tenant_id, valid_from, call_id))

    def lock_key(self) -> str:
        return json.dumps((self.kind, self.order[0]))  # one writer an agent at a time

    def send(self, database: Connection) -> Answer:
        agent_id, owner, valid_from, call_id = cast(
            "tuple[str, str | None, str, str]", json.loads(self.payload)
        )
        return _answer_of(database.record_owner(agent_id, owner, valid_from, call_id))


def restored(kind: str, first: str, second: str, payload: bytes) -> Request:
    """Return the request that was kept in this form."""
    if kind == RejectionRequest.kind:
        return RejectionRequest(payload, first)
    return _KINDS[kind]((first, second), payload)


def kept_form(request: Request) -> tuple[str, str, str, bytes]:
    """Return what `restored` makes the request from."""
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
